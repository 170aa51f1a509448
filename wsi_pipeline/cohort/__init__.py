"""What the data set is: slides or single images, their splits and pixels."""
