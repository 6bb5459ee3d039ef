"""`python -m lorabench.launch`: see `launcher`."""

from lorabench.interrupts import leave_at_once

if __name__ == "__main__":
    leave_at_once("lorabench")
    from lorabench.launch.launcher import main

    main()
