"""The Hub: what goes up, in one commit that is proved to have landed; what comes down, byte for byte the same."""
