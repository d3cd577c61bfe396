"""One table of speed: the work of the paper beside the references that a critic would choose, in the same process."""
