"""What is known of each leaf: from the types of modules, one file a framework, or its name."""
