"""What a checkpoint holds: states spread over processes, brought together and written."""
