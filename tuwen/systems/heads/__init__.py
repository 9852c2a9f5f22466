"""What papers learn on top of their systems for a task, where it is more than a few layers."""
