"""Try the variants of a diffusion model: a Gradio app for a Space of the Hub.

`variants.json` names the repositories; they are read when the app starts, and loaded when first drawn with.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import markup
from bounds import Bounded
from catalog import Variant, read_catalog
from drawing import MAX_GUIDANCE, MAX_PROMPT, MAX_SEED, MAX_STEPS, QUEUE, Event, Refusal, Studio, Wish, wish

HERE = Path(__file__).parent
HISTORY = 12
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


class Page:
    """The page and what it does. `stops` ends the drawing of each session."""

    def __init__(self, variants: list[Variant]) -> None:
        self.variants = variants
        self.studio = Studio()
        self.stops: dict[str, threading.Event] = {}

    def variant(self, label: Any) -> Variant:
        """The variant of a label; the first for labels that mean nothing."""
        return next((each for each in self.variants if each.label == label), self.variants[0])

    def choose(self, label: Any) -> list[Any]:
        """What changes with the variant."""
        chosen = self.variant(label)
        sizes = [size(each) for each in chosen.sizes]
        return [
            markup.facts(chosen),
            markup.comparison(chosen),
            chosen.usage,
            gr.Dropdown(choices=sizes, value=sizes[0]),
            chosen.steps,
            chosen.guidance,
        ]

    def generate(
        self,
        label: Any,
        prompt: Any,
        negative: Any,
        random_seed: Any,
        seed: Any,
        steps: Any,
        guidance: Any,
        chosen_size: Any,
        history: list[Any],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw, and tell of it step by step: picture, status, seed, gallery, history, and the two buttons."""
        chosen = self.variant(label)
        number = secrets.randbelow(MAX_SEED) if random_seed else seed
        try:
            wanted = wish(prompt, negative, number, steps, guidance, chosen_size, chosen)
        except Refusal as refusal:
            yield (
                gr.skip(),
                markup.status(str(refusal), "bad"),
                gr.skip(),
                gr.skip(),
                history,
                *buttons(busy=False),
            )
            return
        stop = self.stops[str(request.session_hash)] = threading.Event()
        try:
            yield (
                markup.picture(None, "Getting ready …", busy=True),
                markup.status(f"Drawing “{wanted.prompt}” with {chosen.name}."),
                wanted.seed,
                gr.skip(),
                history,
                *buttons(busy=True),
            )
            yield from self._draw(chosen, wanted, stop, history)
        finally:
            stop.set()

    def _draw(
        self, chosen: Variant, wanted: Wish, stop: threading.Event, history: list[Any]
    ) -> Iterator[tuple[Any, ...]]:
        preview = None
        for event in self.studio.draw(chosen, wanted, stop):
            preview = event.image or preview
            if event.kind == "done":
                words = f"{wanted.prompt} · {chosen.name} · seed {wanted.seed}"
                history = [markup.drawn(event.image, words), *history][:HISTORY]
            drawn = markup.gallery(history) if event.kind == "done" else gr.skip()
            yield (*shown(event, preview, chosen, wanted), gr.skip(), drawn, history, *ends(event))

    def cancel(self, request: gr.Request) -> str:
        """End the drawing of this session."""
        stop = self.stops.get(str(request.session_hash))
        if stop is None or stop.is_set():
            return markup.status("Nothing is being drawn.")
        stop.set()
        return markup.status("Cancelling …")

    def forget(self, request: gr.Request) -> None:
        """A session ended: so does its drawing."""
        stop = self.stops.pop(str(request.session_hash), None)
        if stop is not None:
            stop.set()


def shown(event: Event, preview: Any, chosen: Variant, wanted: Wish) -> tuple[Any, Any]:
    """Picture and status of an event."""
    if event.kind == "waiting":
        return markup.picture(None, "Waiting …", busy=True), markup.status(event.message)
    if event.kind == "loading":
        return (
            markup.picture(None, f"Loading {chosen.name} …", busy=True),
            markup.status(f"Loading {chosen.name}; this takes a while the first time."),
        )
    if event.kind == "step":
        alt = f"{wanted.prompt}, step {event.step} of {wanted.steps}"
        bar = markup.picture(preview, alt, busy=True, step=event.step, steps=wanted.steps)
        return bar, gr.skip()
    if event.kind == "done":
        words = f"Done in {event.seconds:.1f} s: {wanted.steps} steps, seed {wanted.seed}."
        return markup.picture(event.image, wanted.prompt), markup.status(words, "good")
    if event.kind == "cancelled":
        return markup.picture(None, markup.NOTHING_YET), markup.status("Cancelled.")
    return markup.picture(None, markup.NOTHING_YET), markup.status(event.message, "bad")


def ends(event: Event) -> tuple[Any, Any]:
    """The buttons after an event."""
    return buttons(busy=event.kind in {"waiting", "loading", "step"})


def buttons(*, busy: bool) -> tuple[Any, Any]:
    """Generate and Cancel."""
    return gr.Button(interactive=not busy), gr.Button(interactive=busy)


def size(sides: tuple[int, int]) -> str:
    """For the list of sizes."""
    return f"{sides[0]}×{sides[1]}"


def build(variants: list[Variant]) -> gr.Blocks:
    """The page."""
    page, first = Page(variants), variants[0]
    sizes = [size(each) for each in first.sizes]
    with gr.Blocks(title=f"Try {first.source}", analytics_enabled=False) as blocks:
        gr.HTML(markup.header(variants), padding=False)
        history = gr.State([])
        with gr.Row(elem_id="studio"):
            with gr.Column(elem_id="ask"):
                prompt = gr.Textbox(
                    label="Prompt",
                    placeholder=f"{first.prompts[0]} …" if first.prompts else "What to draw",
                    max_length=MAX_PROMPT,
                    lines=1,
                    max_lines=3,
                    elem_id="prompt",
                    autofocus=True,
                )
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=120)
                    halt = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1, min_width=100)
                if first.prompts:
                    examples = [[text] for text in first.prompts]
                    gr.Examples(examples, inputs=[prompt], label="Examples", elem_id="examples")
            with gr.Column(elem_id="result"):
                picture = gr.HTML(markup.picture(None, markup.NOTHING_YET), elem_id="picture", padding=False)
                status = gr.HTML(markup.status("Ready."), elem_id="status", padding=False)
                waiting = gr.HTML(str(page.studio.line), elem_id="queue", padding=False)
                gallery = gr.HTML("", elem_id="gallery", padding=False)
            with gr.Column(elem_id="how"):
                picker = gr.Radio(
                    [each.label for each in variants], value=first.label, label="Variant", elem_id="variant"
                )
                facts = gr.HTML(markup.facts(first), elem_id="facts", padding=False)
                with gr.Accordion("Settings", open=False):
                    negative = gr.Textbox(
                        label="Negative prompt",
                        info="What to keep out of it.",
                        max_length=MAX_PROMPT,
                        elem_id="negative",
                    )
                    random_seed = gr.Checkbox(True, label="A new seed each time", elem_id="random")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
                    steps = gr.Slider(1, MAX_STEPS, first.steps, step=1, label="Steps", elem_id="steps")
                    guidance = gr.Slider(
                        0, MAX_GUIDANCE, first.guidance, step=0.5, label="Guidance", elem_id="guidance"
                    )
                    chosen_size = gr.Dropdown(sizes, value=sizes[0], label="Size in pixels", elem_id="size")
        with gr.Tabs():
            with gr.Tab("Beside the base"):
                comparison = gr.HTML(markup.comparison(first), elem_id="comparison", padding=False)
            with gr.Tab("Use this model"):
                usage = gr.Code(first.usage, language="python", label="Python", interactive=False, elem_id="usage")

        picker.change(
            page.choose,
            [picker],
            [facts, comparison, usage, chosen_size, steps, guidance],
            api_visibility="private",
        )
        gr.on(
            [go.click, prompt.submit],
            page.generate,
            [picker, prompt, negative, random_seed, seed, steps, guidance, chosen_size, history],
            [picture, status, seed, gallery, history, go, halt],
            show_progress="hidden",
            concurrency_limit=QUEUE + 2,  # they wait in the studio's own queue, which tells of their place
            trigger_mode="once",
            api_visibility="private",
        )
        halt.click(page.cancel, None, [status], queue=False, show_progress="hidden", api_visibility="private")
        blocks.load(lambda: str(page.studio.line), None, [waiting], api_visibility="private")
        blocks.unload(page.forget)
    return blocks


def theme() -> gr.themes.Base:
    """Plain, with the fonts of the visitor's system: nothing is loaded from elsewhere."""
    base = gr.themes.Base(
        font=FONTS, font_mono=MONO, primary_hue="orange", neutral_hue="neutral", radius_size="lg"
    )
    light = {
        "body_background_fill": "#f7f7f5",
        "block_background_fill": "#ffffff",
        "block_border_color": "#dfdfda",
        "input_background_fill": "#ffffff",
        "input_border_color": "#bdbdb6",
        "input_border_width": "1px",
        "block_label_text_color": "#5f656e",
        "checkbox_label_background_fill": "#f3f3f0",
        "body_text_color": "#1c1e21",
    }
    dark = {
        "body_background_fill": "#131519",
        "block_background_fill": "#1b1e23",
        "block_border_color": "#343a43",
        "input_background_fill": "#131519",
        "input_border_color": "#5b626d",
        "block_label_text_color": "#a0a7b2",
        "checkbox_label_background_fill": "#262a31",
        "body_text_color": "#e6e7ea",
    }
    return base.set(**light, **{f"{name}_dark": value for name, value in dark.items()})


def main() -> None:
    """Serve the page where the environment says.

    Not by `launch`: that ends the app where its first answer takes more than three seconds, as on a busy machine.
    """
    import uvicorn
    from fastapi import FastAPI

    blocks = build(read_catalog(HERE / "variants.json"))
    blocks.queue(max_size=2 * QUEUE, default_concurrency_limit=4, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        theme=theme(),
        css_paths=[HERE / "style.css"],
        footer_links=[],
        show_error=False,
        ssr_mode=False,
    )
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")  # noqa: S104 — a Space is a container of its own
    uvicorn.run(
        Bounded(app), host=host, port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")), log_level="warning"
    )


if __name__ == "__main__":
    main()
