"""`python -m lorabench.planning`: a workload as JSON in, its plan as JSON out, for `ahead.PlanAhead`."""

import json
import sys

from lorabench.machine.libraries import quiet_libraries
from lorabench.planning.ahead import answer


def main() -> None:
    """Read, plan, write."""
    asked = json.loads(sys.stdin.read())
    quiet_libraries()
    result = answer(asked)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
