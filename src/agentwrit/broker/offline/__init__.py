"""What is done to a store without serving from it: backups, restores, other keys and names, copies, verification."""
