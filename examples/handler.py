#!/usr/bin/env python3
"""A handler for `zkmw worker --handler examples/handler.py`: runs Python functions as tasks, without a process each.

A task's command is a function's name and its arguments, as a shell would split them: `zkmw submit 'add 1 2'` prints 3.
The task's output is all that the function prints, and then its result. An exception is exit code 1, with the
traceback on the task's standard error; SystemExit is the exit code that it says. The protocol is in docs/handler.md;
nothing but Python 3.9 is needed. Replace the functions below by your own.
"""

import contextlib
import io
import json
import os
import shlex
import sys
import traceback

TASKS = {}
# Characters kept of each end of an output. Each takes at most 12 bytes, and an answer may have 512 KiB.
HALF = 10_000


def task(function):
    """Makes a function a task of its name."""
    TASKS[function.__name__] = function
    return function


@task
def add(*numbers):
    return sum(int(number) for number in numbers)


@task
def wordcount(path):
    with open(path, encoding="utf-8") as file:
        return sum(len(line.split()) for line in file)


@task
def whoami(request):
    """A function whose first argument is called `request` is given the whole request, too."""
    return f"{request['task']}, attempt {request['attempt']} on {request['worker']}"


def words_of(request):
    """A program and its arguments, if it was submitted so, else the words of a command line."""
    if "argv" in request:
        return request["argv"]
    return shlex.split(request.get("command", ""))


def function_of(name):
    if name not in TASKS:
        print(f"there is no task {name!r}; there are: {', '.join(sorted(TASKS))}", file=sys.stderr)
        sys.exit(127)
    return TASKS[name]


def call(request):
    """The exit code of the task; what it prints goes wherever standard output and error go now."""
    try:
        name, *arguments = words_of(request) or [""]
        function = function_of(name)
        if function.__code__.co_varnames[:1] == ("request",):
            arguments = [request, *arguments]
        result = function(*arguments)
        if result is not None:
            print(result)
        return 0
    except SystemExit as end:
        code = end.code
        if code is None:
            return 0
        return code if isinstance(code, int) and 0 <= code <= 255 else 1
    except Exception:
        traceback.print_exc()
        return 1


def kept(text):
    """The part that fits into an answer; the worker keeps less than this anyway. Half a character is no JSON."""
    if len(text) > 2 * HALF:
        text = text[:HALF] + "\n[…]\n" + text[-HALF:]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def answer(request):
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        exit_code = call(request)
    return {
        "id": request["id"],
        "exit_code": exit_code,
        "stdout": kept(stdout.getvalue()),
        "stderr": kept(stderr.getvalue()),
    }


def main():
    # Only answers may go to the worker, and only this loop may read its requests. A library, or a child, must not use
    # these streams past sys.stdout and sys.stdin.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in requests:
        json.dump(answer(json.loads(line)), answers, separators=(",", ":"))
        answers.write("\n")
        # Without this the worker waits, and the task runs past its timeout.
        answers.flush()
    # The end of the requests: the worker ends.


if __name__ == "__main__":
    main()
