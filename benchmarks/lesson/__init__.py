"""A task that language feedback can teach: words are to be written in a code of which the model knows one half."""
