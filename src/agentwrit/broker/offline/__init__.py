"""Operations on a store that is not being served: backups, restores, new keys and names, copies, verification."""
