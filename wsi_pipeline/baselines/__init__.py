"""Classic texture features and classifiers, for comparison."""
