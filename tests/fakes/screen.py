"""A terminal of the tests: it obeys the few commands that we use, and refuses all others."""

import io
import re

_TOKEN = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Screen(io.StringIO):
    """What a person sees. A line that is wider than the screen wraps, as it would."""

    encoding = "utf-8"

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width = width
        self.height = height
        self.lines = [""]
        self.row = 0
        self.column = 0
        self.rows_max = 0
        self.has_wrapped = False

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """The lines that are not empty at the end."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

    def write(self, text: str) -> int:
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match is not None, f"not a command we use: {text[position:][:20]!r}"
            position = match.end()
            if match[2]:
                self._command(match[2], match[1])
            elif match[3]:
                self.column = 0
            elif match[4]:
                self._new_line()
            else:
                for char in match[5]:
                    self._put(char)
        self.rows_max = max(self.rows_max, len(self.text.split("\n")))
        return len(text)

    def _command(self, name: str, argument: str) -> None:
        match name:
            case "m":
                pass
            case "A":
                self.row -= int(argument)
                assert self.row >= 0, "above the first line"
            case "K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "J":
                self.lines[self.row] = self.lines[self.row][: self.column]
                del self.lines[self.row + 1 :]
            case _:
                raise AssertionError(f"not a command we use: {name}")

    def _new_line(self) -> None:
        self.row += 1
        self.column = 0
        if self.row == len(self.lines):
            self.lines.append("")

    def _put(self, char: str) -> None:
        if self.column == self.width:
            self.has_wrapped = True
            self._new_line()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
        self.column += 1
