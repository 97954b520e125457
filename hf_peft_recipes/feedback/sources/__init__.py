"""Who or what gives feedback, one file each."""
