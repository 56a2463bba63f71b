"""What models are tried with, without torch: arrays of a user's files, checked; pictures, sounds and texts made up."""
