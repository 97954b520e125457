"""Keys and lines from standard input, whether it is a terminal or a pipe."""

import os
import select
import termios
import tty

_ESCAPE, _END_OF_TRANSMISSION = "\x1b", "\x04"


class Keyboard:
    """What somebody types; where input is no terminal, the first character of a line is a key.

    Nothing is read ahead, so that an editor started between two keys gets what is typed into it.
    """

    def __init__(self, descriptor: int = 0) -> None:
        """Args:
        descriptor: of the file that is read.
        """
        self._descriptor = descriptor
        self.is_terminal = os.isatty(descriptor)

    def key(self) -> str | None:
        """Return the key that was pressed, without echo; None at the end of the input."""
        if not self.is_terminal:
            line = self.line()
            return line if line is None else line[:1]
        before = termios.tcgetattr(self._descriptor)
        try:
            # TCSADRAIN: what was typed ahead stays.
            tty.setcbreak(self._descriptor, termios.TCSADRAIN)
            pressed = os.read(self._descriptor, 1).decode("ascii", "replace")
            if pressed == _ESCAPE:
                self._pass_over_sequence()
            return None if pressed in ("", _END_OF_TRANSMISSION) else pressed
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)

    def _pass_over_sequence(self) -> None:
        # An arrow is several characters (ESC [ A), of which the last one is not to count as a key.
        first = self._soon()
        while first in ("[", "O") and (following := self._soon()) and not "@" <= following <= "~":
            pass

    def _soon(self) -> str:
        has_come = select.select([self._descriptor], [], [], 0.05)[0]
        return os.read(self._descriptor, 1).decode("ascii", "replace") if has_come else ""

    def line(self) -> str | None:
        """Return a line without its end; None at the end of the input."""
        read = bytearray()
        while byte := os.read(self._descriptor, 1):
            if byte == b"\n":
                return read.decode("utf-8", "replace").rstrip("\r")
            read += byte
        return read.decode("utf-8", "replace") or None
