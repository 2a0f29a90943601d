"""Stands for `python`: asks a server that has imported the heavy packages to fork a process in our place.

    python -IS launcher.py FOLDER ARGUMENTS OF PYTHON ...

The fork gets our arguments, environment, folder, umask, standard streams and every signal that can be passed on, and
we end as it does; killed, it is killed.  What only a new interpreter can be is one: where a variable differs that is
read as Python starts, or where Python is given an option, we become Python itself.
"""

import array
import marshal
import os
import resource
import signal
import socket
import sys

PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "HF_", "TRANSFORMERS_")
"""Beginnings of names of variables that a process reads once, as it starts or imports."""
SET_BY_AN_IMPORT = "HF_XET_HIGH_PERFORMANCE"
"""lm_eval's, for downloads, which no test makes: once an oracle is imported, all that a test starts would have it."""
SPEED = ("OMP_", "MALLOC_")
"""Of those that change nothing but its speed: a server may have them and a program not."""
KIND = "IPT_TESTS_WARM"
"""The variable that names what a script needs; the modules below need no word."""
MEGATRON = ("megatron_ipt.pretrain", "megatron_ipt.convert.reshard")
MEGATRON_VERBS = ("convert", "plan", "export")
TRANSFORMERS = ("megatron_ipt.convert.reference",)
TRANSFORMERS_VERBS = ("evaluate", "baseline", "synthesize")


def kind_of(arguments: list[str]) -> str:
    """Which server has imported what this would import, and no CPU shim of megatron-core where this has none."""
    if arguments[:1] != ["-m"] or len(arguments) < 2:
        return "plain"
    step = arguments[-1] if arguments[-2] == "--only" else arguments[2] if len(arguments) > 2 else ""
    verb = step if arguments[1] == "megatron_ipt.cli.main" else ""
    if arguments[1] in MEGATRON or verb in MEGATRON_VERBS:
        return "megatron"
    return "transformers" if arguments[1] in TRANSFORMERS or verb in TRANSFORMERS_VERBS else "plain"


def as_started(environment: dict[str, str], server: dict[str, str]) -> bool:
    """Whether a process of this environment starts as the server did."""
    fixed = [
        {name: value for name, value in of.items() if name.startswith(READ_AT_START) and name != SET_BY_AN_IMPORT}
        for of in (environment, server)
    ]
    speed = all(server.get(name) == value for name, value in environment.items() if name.startswith(SPEED))
    return fixed[0] == fixed[1] and speed


def main(folder: str, arguments: list[str]) -> None:
    environment = dict(os.environ)
    kind = environment.pop(KIND, "")
    with open(os.path.join(folder, "started"), "rb") as file:  # noqa: PTH118, PTH123 - pathlib takes longer than all
        python, theirs = marshal.load(file)
    given = arguments[1:] if arguments[:1] == ["-u"] else arguments
    option = not given or (given[0].startswith("-") and given[0] not in ("-m", "-c"))
    if option or not as_started(environment, theirs):
        os.execve(python, [python, *arguments], environment)
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.path.join(folder, kind or kind_of(given)))  # noqa: PTH118
    leads = os.getpid() == os.getpgrp()
    request = marshal.dumps((given, environment, os.getcwd(), leads, len(given) < len(arguments)))  # noqa: PTH109
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))]
    server.sendmsg([len(request).to_bytes(8, "little")], streams)
    server.sendall(request)
    for name in PASSED_ON:
        number = getattr(signal, name)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
    told = server.recv(4)
    if len(told) < 4:
        sys.exit("the server of warm Pythons is gone")
    code = int.from_bytes(told, "little", signed=True)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
