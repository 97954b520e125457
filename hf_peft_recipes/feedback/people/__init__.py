"""People who give feedback: what waits for them, in a terminal and on a web page."""
