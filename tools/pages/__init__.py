"""What the generated parts of the pages say, with one module for each subject."""
