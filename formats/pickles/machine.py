"""A machine for the pickles of checkpoints, with an allow-list of instructions, names and calls; it imports and runs nothing.

It makes dictionaries, lists, tuples, strings, numbers, truth values, None, and descriptions of tensors (:mod:`.rebuild`). It stops at the
first instruction or name that torch's own writer has no use for, with an error that names it and its place. What it makes may take no more
memory than a small multiple of the file.

Instructions are those of Python's pickle protocols 2 to 5 (``pickletools`` documents them) that ``torch.save`` emits for weights.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NoReturn

from .allowed import ALLOWED, Call
from .rebuild import OrderedDictionary, Storage, TensorView, rebuild, storage_from_identity
from .stream import Budget, PickleStream

__all__ = ["run_pickle"]

INSTRUCTIONS_MAX = 1 << 22
STRING_MAX = 1 << 20  # bytes
NAME_MAX = 1 << 8  # bytes of a module's or function's name
LONG_MAX = 16  # bytes of an integer
MARKS_MAX = 1 << 10
MEMO_MAX = 1 << 22

# bytes of memory that things take, about
_SLOT, _CONTAINER, _ENTRY, _STRING, _NUMBER, _TENSOR = 8, 64, 96, 56, 32, 400
_STOP = ord(".")


class _Machine:
    """The state of one run: a stack, the stacks below open marks, and the memo."""

    def __init__(self, stream: PickleStream, budget: Budget, storages: dict[str, Storage], *, with_views: bool) -> None:
        self.stream = stream
        self.budget = budget
        self.storages = storages
        self.with_views = with_views
        self.stack: list[object] = []
        self.below: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.start = stream.position

    def run(self) -> object:
        for _ in range(INSTRUCTIONS_MAX):
            self.start = self.stream.position
            code = self.stream.byte()
            if code == _STOP:
                value = self.pop()
                if self.stack or self.below:
                    self.refuse("the pickle stops with values left over")
                return value
            action = _ACTIONS.get(code)
            if action is None:
                self.refuse(f"the instruction {_instruction(code)} is none that a checkpoint of weights needs")
            action(self)
        self.refuse(f"the pickle has more than {INSTRUCTIONS_MAX} instructions")

    def refuse(self, problem: str) -> NoReturn:
        self.stream.refuse(problem, self.start)

    def spend(self, count: int) -> None:
        if not self.budget.spend(count):
            self.refuse(f"what the pickle makes exceeds {self.budget.limit} bytes, too much for a file of this size")

    def push(self, value: object, cost: int = 0) -> None:
        self.spend(_SLOT + cost)
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            self.refuse("an instruction finds nothing to work on")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        if not self.below:
            self.refuse("an instruction finds no mark")
        items = self.stack
        self.stack = self.below.pop()
        return items

    # --- simple values

    def protocol(self) -> None:
        version = self.stream.byte()
        if not 2 <= version <= 5:
            self.refuse(f"the pickle has protocol {version}; 2 to 5 can be read")

    def frame(self) -> None:
        self.stream.take(8)  # a frame only says how much may be read at once

    def text(self, width: int) -> None:
        length = self.stream.number(width)
        if length > STRING_MAX:
            self.refuse(f"a string of {length} bytes is longer than any name")
        try:
            value = self.stream.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a string is no UTF-8")
        self.push(value, _STRING + 4 * length if not value.isascii() else _STRING + length)

    def integer(self, width: int, signed: bool) -> None:
        self.push(int.from_bytes(self.stream.take(width), "little", signed=signed), _NUMBER)

    def long(self) -> None:
        length = self.stream.byte()
        if length > LONG_MAX:
            self.refuse(f"an integer of {length} bytes is longer than any that a checkpoint needs")
        self.integer(length, signed=True)

    def float(self) -> None:
        self.push(struct.unpack(">d", self.stream.take(8))[0], _NUMBER)

    # --- containers

    def mark(self) -> None:
        if len(self.below) >= MARKS_MAX:
            self.refuse(f"more than {MARKS_MAX} marks are open")
        self.spend(_CONTAINER)
        self.below.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            self.refuse("a tuple finds too few values")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items, _CONTAINER + _SLOT * count)

    def tuple_to_mark(self) -> None:
        items = tuple(self.pop_to_mark())
        self.push(items, _CONTAINER + _SLOT * len(items))

    def append(self) -> None:
        self._extend([self.pop()])

    def appends(self) -> None:
        self._extend(self.pop_to_mark())

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1] if self.stack else None
        if type(target) is not list:
            self.refuse("values are appended to something that is no list")
        self.spend(_SLOT * len(items))
        target.extend(items)

    def set_item(self) -> None:
        value = self.pop()
        self._update([self.pop(), value])

    def set_items(self) -> None:
        self._update(self.pop_to_mark())

    def _update(self, items: list[object]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            self.refuse("keys and values are put into something that is no dictionary, or are no pairs")
        self.spend(_ENTRY * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.refuse(f"a dictionary has a key of type {type(key).__name__}; only strings are names")
            if key in target:
                self.refuse(f"a dictionary has the key {_shown(key)} twice")
            target[key] = value

    def build(self) -> None:
        self.pop()  # attributes, of which none is needed
        if not self.stack or type(self.stack[-1]) is not OrderedDictionary:
            self.refuse("a state is given to something that is no OrderedDict")

    # --- memo

    def put(self, index: int) -> None:
        if not self.stack:
            self.refuse("nothing is there to remember")
        if index >= MEMO_MAX:
            self.refuse(f"the memo has no place {index}")
        self.spend(_ENTRY)
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.refuse(f"nothing was remembered at {index}")
        self.push(self.memo[index])

    # --- names, calls and storages

    def name(self) -> None:
        words = []
        for _ in range(2):
            try:
                words.append(self.stream.line(NAME_MAX).decode("ascii"))
            except UnicodeDecodeError:
                self.refuse("the name of something to import is no ASCII")
        self._look_up(*words)

    def name_from_stack(self) -> None:
        function, module = self.pop(), self.pop()
        if type(module) is not str or type(function) is not str:
            self.refuse("the name of something to import is no string")
        self._look_up(module, function)

    def _look_up(self, module: str, function: str) -> None:
        found = ALLOWED.get(f"{module}.{function}")
        if found is None:
            self.refuse(f"the pickle asks for {_shown(f'{module}.{function}')}, which no checkpoint of weights needs")
        self.push(found)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Call) or type(arguments) is not tuple:
            self.refuse("the pickle calls something that is no function of torch's for tensors")
        value = rebuild(function, arguments, self.refuse)
        self.push(value, _TENSOR if isinstance(value, TensorView) else _CONTAINER)

    def storage(self) -> None:
        view = storage_from_identity(self.pop(), self.with_views, self.refuse)
        known = self.storages.setdefault(view.storage.key, view.storage)
        if known != view.storage:
            self.refuse(f"storage {known.key} is described in two ways")
        self.push(view, _TENSOR)


def run_pickle(
    stream: PickleStream, budget: Budget, storages: dict[str, Storage], *, with_views: bool = False
) -> object:
    """Return what the pickle at the stream's position holds, and leave the stream behind it.

    ``storages`` receives every storage that it mentions, by key; ``with_views`` says whether these may be named with a view, as in files
    before torch 1.6. Raises FormatError, or TruncatedError where the stream ends early.
    """
    return _Machine(stream, budget, storages, with_views=with_views).run()


def _instruction(code: int) -> str:
    import pickletools  # slow, and only a message needs it

    names = {known.code: known.name for known in pickletools.opcodes}
    return names.get(chr(code), f"0x{code:02x}")


def _shown(name: str) -> str:
    text = ascii(name)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}…"


_Action = Callable[[_Machine], None]

_ACTIONS: Mapping[int, _Action] = {
    ord(code): action
    for code, action in {
        "\x80": _Machine.protocol,
        "\x95": _Machine.frame,
        "N": lambda machine: machine.push(None),
        "\x88": lambda machine: machine.push(True),
        "\x89": lambda machine: machine.push(False),
        "J": lambda machine: machine.integer(4, signed=True),
        "K": lambda machine: machine.integer(1, signed=False),
        "M": lambda machine: machine.integer(2, signed=False),
        "\x8a": _Machine.long,
        "G": _Machine.float,
        "\x8c": lambda machine: machine.text(1),
        "X": lambda machine: machine.text(4),
        "}": lambda machine: machine.push({}, _CONTAINER),
        "]": lambda machine: machine.push([], _CONTAINER),
        ")": lambda machine: machine.push(()),
        "(": _Machine.mark,
        "t": _Machine.tuple_to_mark,
        "\x85": lambda machine: machine.tuple_of(1),
        "\x86": lambda machine: machine.tuple_of(2),
        "\x87": lambda machine: machine.tuple_of(3),
        "a": _Machine.append,
        "e": _Machine.appends,
        "s": _Machine.set_item,
        "u": _Machine.set_items,
        "b": _Machine.build,
        "q": lambda machine: machine.put(machine.stream.byte()),
        "r": lambda machine: machine.put(machine.stream.number(4)),
        "\x94": lambda machine: machine.put(len(machine.memo)),
        "h": lambda machine: machine.get(machine.stream.byte()),
        "j": lambda machine: machine.get(machine.stream.number(4)),
        "c": _Machine.name,
        "\x93": _Machine.name_from_stack,
        "R": _Machine.call,
        "Q": _Machine.storage,
    }.items()
}
