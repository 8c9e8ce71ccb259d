"""What test files share, and programs that they run in other processes."""
