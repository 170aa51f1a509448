"""Folders of single images, the PatchNet papers' kind of data set, in place of slides."""
