"""The same work done by others, each as its own process."""
