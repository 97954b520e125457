"""Scripts that measure, and the results that they committed. The measuring code they share is in the package."""
