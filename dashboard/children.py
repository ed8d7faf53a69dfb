"""Commands that the dashboard runs for a viewer, at its own low priority."""

import asyncio
import sys
from collections.abc import Sequence

from shared.errors import Failure


async def run_module(
    module: str, arguments: Sequence[str], *, timeout_s: float
) -> tuple[int, str, str]:
    """`python -m MODULE ARGUMENTS`: exit code, stdout, stderr.

    Raises:
        Failure: it does not end; it is killed then.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        what = f"{module} {arguments[0]}"
        raise Failure(f"{what} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
