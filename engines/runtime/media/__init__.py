"""Pictures, films, sounds and meshes: files to what a graph takes, and what a model made to files. numpy alone."""
