"""An artifact over HTTP: photos or patches in, vectors out."""
