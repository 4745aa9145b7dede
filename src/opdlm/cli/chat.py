"""`opdlm generate MODEL` on a terminal: one prompt after another."""

import contextlib
import re
from typing import TYPE_CHECKING, Any

from opdlm.cli.terminal import make_console
from opdlm.errors import ContextLengthError, PromptsError

if TYPE_CHECKING:
    from opdlm.sampling.api import DiffusionLM

_PROMPT = "> "


class Chat:
    """Asks, answers and remembers, until /quit or the end of the input."""

    def __init__(self, model: "DiffusionLM", settings: dict[str, Any], watch: bool) -> None:
        self.model, self.settings, self.watch = model, settings, watch
        self.remembers = bool(model.tokenizer.chat_template)
        self.console = make_console()
        self.history: list[dict[str, str]] = []

    def run(self) -> None:
        """Ctrl-C ends an answer; where nothing is written, it ends the command."""
        with contextlib.suppress(ImportError):  # arrow keys, where Python has it
            import readline  # noqa: F401
        kept = "/new forgets the conversation" if self.remembers else "no chat template: each prompt is on its own"
        self._say(f"{kept}; /quit or Ctrl-D ends")
        while True:
            try:
                text = input(_PROMPT).strip()
            except EOFError:
                print()
                return
            if text == "/quit":
                return
            if text == "/new":
                self.history = []
            elif re.fullmatch("/[a-z]+", text):
                self._say(f"there is no {text}; /new forgets the conversation, /quit ends")
            elif text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        """One prompt and its answer; what goes wrong leaves the conversation as it was."""
        asked = [*self.history, {"role": "user", "content": text}]
        try:
            answer = self._answer(asked if self.remembers else text)
        except ContextLengthError as error:
            self._say(f"error: {error}; /new begins a new conversation")
        except PromptsError as error:
            self._say(f"error: {error}")
        except KeyboardInterrupt:
            self._say("stopped; it is not part of the conversation")
        else:
            self.history = [*asked, {"role": "assistant", "content": answer}] if self.remembers else []

    def _answer(self, prompt: str | list[dict[str, str]]) -> str:
        """Shown, too."""
        from opdlm.cli.watch import view_of

        if not self.watch:
            answer = self.model.write(prompt, **self.settings)
            print(answer)
            return answer
        view = view_of(self.model, self.console, self.model.settings(self.settings).decoding)
        try:
            return self.model.write(prompt, streamer=view, **self.settings)
        finally:
            view.end()  # gives the cursor back, also after an error

    def _say(self, text: str) -> None:
        self.console.print(" ".join(text.split()), style="dim", markup=False, soft_wrap=True)
