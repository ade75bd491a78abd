"""One file per data set layout: annotation files and folders to a `Listing`."""
