"""`python -m lorabench.launch`: see `launcher`."""

from lorabench.launch.launcher import main

if __name__ == "__main__":
    main()
