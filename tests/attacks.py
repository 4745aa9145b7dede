"""Programs that want to pass without knowing the answer, or to reach what is not theirs. Each defines `attack()`."""

# What a program may know of the parent's side: how messages look, and where its channel is.
_EVERYWHERE = """
import os
def say(data):
    for fd in range(64):
        try:
            os.write(fd, data)
        except OSError:
            pass
"""

# The answer is a word that begins with this, which these programs never see.
MARK = "ANSWER-"

FORGED = {
    "prints what a grader may want to read": """
import sys
def attack():
    print('{"passed": true}')
    sys.__stdout__.write('{"value": 1, "repr": "1"}')
""",
    "says on every descriptor that it passed, and leaves": _EVERYWHERE
    + """
def attack():
    say(b'{"passed": true}\\n{"ok": true, "passed": [true], "value": null, "repr": ""}\\n')
    os._exit(0)
""",
    "leaves at once with the code of success": "import os\nos._exit(0)",
    "leaves by SystemExit": "raise SystemExit(0)",
    "leaves by KeyboardInterrupt": "def attack():\n    raise KeyboardInterrupt",
    "an object that equals everything": """
class Same:
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
def attack():
    return Same()
""",
    "a text that equals everything": """
class Same(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__
def attack():
    return Same("x")
""",
    "a container that holds what equals everything": """
class Same(list):
    __eq__ = lambda self, other: True
    __iter__ = lambda self: iter([1])
def attack():
    return Same()
""",
    "a class that claims to be a text": """
class Liar:
    __class__ = property(lambda self: str)
    __eq__ = lambda self, other: True
def attack():
    return Liar()
""",
    "another repr, json and encoder": """
import builtins, json, sys
builtins.repr = lambda value: "'ANSWER-'"
json.dumps = lambda *_, **__: '{"passed": true, "value": true, "repr": "True"}'
for name, module in list(sys.modules.items()):
    if name.startswith("sandboxed"):
        for each in ("encode", "failure", "send"):
            setattr(module, each, lambda *_: {"passed": True})
def attack():
    return 1
""",
    "looks through the frames": """
import sys
def attack():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [v for v in [*frame.f_locals.values(), *frame.f_globals.values()] if str(v).startswith("ANSWER-" + "x")]
        frame = frame.f_back
    return seen[0]
""",
    "looks through all objects": """
import gc
def attack():
    for each in gc.get_objects():
        for part in gc.get_referents(each):
            if isinstance(part, str) and "ANSWER-" + "x" in part:
                return part
""",
    "reads on in its own requests": """
import os
def attack():
    return os.read(3, 10**6).decode()
""",
    "reads its own arguments": "import sys\ndef attack():\n    return sys.argv[-1], sys.orig_argv",
    "acts when it ends": """
import atexit, os
atexit.register(lambda: [os.write(fd, b'{"passed": true}\\n') for fd in (1, 4)])
def attack():
    return 1
""",
    "a thread that talks in between": _EVERYWHERE
    + """
import threading
def talk():
    while True:
        say(b'{"passed": true, "value": "ANSWER-", "repr": "ANSWER-"}\\n')
try:
    threading.Thread(target=talk, daemon=True).start()
except RuntimeError:
    talk()
def attack():
    return 1
""",
    "bytes that are no text": _EVERYWHERE + "def attack():\n    say(b'\\xff\\xfe\\x00\\n' * 100)\n",
    "a line without an end": _EVERYWHERE + "def attack():\n    while True:\n        say(b'x' * 65536)\n",
    "a million lines": _EVERYWHERE + "def attack():\n    say(b'{}\\n' * 10**6)\n",
    "nesting without an end": _EVERYWHERE + "def attack():\n    say(b'[' * 90000 + b'\\n')\n",
    "objects nested too deeply": _EVERYWHERE
    + "def attack():\n    say(b'{\"value\": ' + b'{\"tuple\":[' * 8000 + b'\\n')\n",
    "an answer that is no object": _EVERYWHERE + "def attack():\n    say(b'7\\n')\n    os._exit(0)\n",
    "a value that is none": _EVERYWHERE
    + """def attack():
    say(b'{"value": {"set": [[1], {"range": [1, "x", {"no": 1}]}, {"tuple": 5}]}, "repr": {"a": 1}}\\n')
""",
    "a number of a million digits": _EVERYWHERE + "def attack():\n    say(b'{\"value\": ' + b'9' * 90000 + b'}\\n')\n",
    "lone surrogates": "def attack():\n    raise ValueError('\\ud800')",
    "recursion without an end": "def attack():\n    return attack()",
    "a list nested 100,000 deep": """
def attack():
    x = []
    for _ in range(10**5):
        x = [x]
    return x
""",
    "a list that holds itself": "def attack():\n    x = []\n    x.append(x)\n    return x",
    "a repr that raises": "class A:\n    def __repr__(self):\n        raise SystemExit\ndef attack():\n    return A()",
    "an error that cannot be told": """
class E(Exception):
    def __str__(self):
        raise KeyboardInterrupt
def attack():
    raise E
""",
    "an endless generator": "import itertools\ndef attack():\n    return (n for n in itertools.count())",
    "an endless loop": "while True:\n    try:\n        pass\n    except BaseException:\n        pass",
    "a loop deaf to signals": """
import signal
for number in range(1, 64):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    "all memory": "def attack():\n    x = []\n    while True:\n        x.append('a' * 10**6 + str(len(x)))",
    "one huge text": "def attack():\n    return 'x' * 10**8",
    "closes its descriptors": "import os\ndef attack():\n    os.closerange(0, 1000)",
    "stops itself": "import os, signal\ndef attack():\n    os.kill(os.getpid(), signal.SIGSTOP)",
    "crashes the interpreter": "import ctypes\ndef attack():\n    ctypes.string_at(0)",
}

# These return True where they get through, and without confinement they do; the HARMFUL are not tried there.
# `{file}` holds the answer, `{folder}` is a folder of the user, `{port}` listens, and `{pid}` is a process of the user
# that has the answer in its command line and environment.
REACHING = {
    "reads the problems file": "def attack():\n    return 'ANSWER-' in open('{file}').read()",
    "reads it by another way": """
import os
os.symlink('{file}', '/tmp/x')
def attack():
    return 'ANSWER-' in open('/tmp/x').read()
""",
    "reads it through the parent's root": """
def attack():
    return 'ANSWER-' in open('/proc/{pid}/root{file}').read()
""",
    "reads the parent's command line": """
import os
def attack():
    return bool(open(f'/proc/{{os.getppid()}}/cmdline').read())
""",
    "reads any command line": """
import glob
def attack():
    return any('ANSWER-' in open(path).read() for path in glob.glob('/proc/[0-9]*/cmdline'))
""",
    "reads an environment": "def attack():\n    return 'ANSWER-' in open('/proc/{pid}/environ').read()",
    "reads another's memory map": "def attack():\n    return bool(open('/proc/{pid}/maps').read())",
    "lists another's descriptors": "import os\ndef attack():\n    return bool(os.listdir('/proc/{pid}/fd'))",
    "lists the folder": "import os\ndef attack():\n    return bool(os.listdir('{folder}'))",
    "reads the home directory": "import os, pwd\ndef attack():\n    return bool(os.listdir(pwd.getpwuid(0).pw_dir))",
    "reads the list of users": "def attack():\n    return bool(open('/etc/passwd').read())",
    "makes a file": "import os\ndef attack():\n    os.close(os.open('{folder}/made', os.O_CREAT))\n    return True",
    "empties the problems file": "import os\ndef attack():\n    os.truncate('{file}', 0)\n    return True",
    "changes the standard library": """
import os, stat
def attack():
    os.chmod(os.__file__, os.stat(os.__file__).st_mode)
    return True
""",
    "connects to a port": """
import socket
def attack():
    socket.create_connection(('127.0.0.1', {port}), 1)
    return True
""",
    "connects to an abstract socket": """
import socket
def attack():
    socket.socket(socket.AF_UNIX).connect(chr(0) + 'opdlm-{port}')
    return True
""",
    "signals a process": "import os\ndef attack():\n    os.kill({pid}, 0)\n    return True",
    "traces a process": """
import ctypes
def attack():
    return ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0
""",
    "starts a process": """
import subprocess, sys
def attack():
    return subprocess.run([sys.executable, '-c', '']).returncode == 0
""",
}
# They leave something behind.
HARMFUL = {"reads it by another way", "makes a file", "empties the problems file", "changes the standard library"}

# These return True too. They want what the user cannot do either, or what the limits forbid.
HIGHER = {
    "goes up from an open folder": """
import os
def attack():
    for fd in range(64):
        try:
            os.stat('{file}', dir_fd=fd) and os.listdir(fd)
            return True
        except OSError:
            pass
""",
    "becomes root": "import os\ndef attack():\n    os.setuid(0)\n    return True",
    "forks": "import os\ndef attack():\n    os.fork()\n    return True",
    "makes its root writable": """
import ctypes
def attack():
    return ctypes.CDLL(None).mount(None, b'/usr/lib', None, 4096 | 32, None) == 0
""",
    "mounts /proc": """
import ctypes, os
def attack():
    os.mkdir('/tmp/p')
    return ctypes.CDLL(None).mount(b'proc', b'/tmp/p', b'proc', 0, None) == 0
""",
    "joins another's namespace": """
import ctypes, os
def attack():
    return ctypes.CDLL(None).setns(os.open('/proc/1/ns/mnt', 0), 0) == 0
""",
    "leaves its root": "import os\ndef attack():\n    os.chroot('/tmp')\n    return True",
    "raises its own limits": """
import resource
def attack():
    resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
    return True
""",
    "fills /tmp": """
def attack():
    with open('/tmp/x', 'wb') as file:
        file.write(b'x')
    return True
""",
    "makes a file of memory": "import os\ndef attack():\n    return os.write(os.memfd_create('x'), b'x' * 10**6) > 0",
}
