"""The systems on trial, rebuilt small: one a file, with the parts they share in `blocks`."""
