"""Publish device-ready variants from a browser: a Gradio app for a Space of the Hub, with a webhook.

Visitors sign in with OAuth, and what is published is published with their token. Without OAuth (`hf_oauth` of the
Space's README), nothing can be published from the page, unless the Hub is one on this very machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import hooks
import limits
import looking
import making
import markup
from bounds import Bounded
from limits import Limits
from looking import Look

from sdhub.core.endpoint import endpoint
from sdhub.core.errors import SdhubError
from sdhub.core.hub import LOCAL_TOKEN, Hub
from sdhub.publishing.names import repository_id

HERE = Path(__file__).parent
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
PULL, COMMIT = "Pull requests", "Commits to main"


def is_here(url: str) -> bool:
    """Whether a Hub is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Page:
    """What the page does. `oauth` says whether visitors sign in."""

    def __init__(self, hub: str, *, oauth: bool, limits: Limits | None = None) -> None:
        self.hub = hub
        self.oauth = oauth
        self.limits = limits or Limits()

    def visitor(self, token: gr.OAuthToken | None) -> Hub:
        """The Hub as the visitor may use it: with their own token, never the Space's."""
        if token is not None:
            return Hub(self.hub, token.token)
        return Hub(self.hub, LOCAL_TOKEN if is_here(self.hub) and not self.oauth else None)

    def look(self, source: str, visitor: Hub) -> tuple[Any, ...]:
        """What is found: status, HTML, choices, button, the look itself."""
        try:
            found = looking.look(source or "", visitor, self.limits)
        except Exception as error:
            if not isinstance(error, SdhubError):
                logging.exception("a checkpoint could not be looked at")
                error = SdhubError("This checkpoint could not be looked at; the log of this Space says why")
            words = f"{error.message}. {error.hint}" if error.hint else error.message
            return markup.status(words, "bad"), "", gr.CheckboxGroup(choices=[], visible=False), gr.skip(), None
        names = [choice.name for choice in found.choices if choice.reason is None]
        usual = [name for name in names if name in looking.usual()][:1] or names[:1]
        words = f"{len(names)} variants can be made of it." if names else "No variant can be made of it."
        chosen = gr.CheckboxGroup(choices=names, value=usual, visible=bool(names))
        ready = gr.Button(interactive=bool(names) and visitor.token is not None)
        return markup.status(words, "good" if names else "bad"), markup.found(found), chosen, ready, found

    def publish(
        self, found: Look | None, chosen: list[str], namespace: str, way: str, private: bool, visitor: Hub
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Publish, and tell of it: status, log, button."""
        try:
            words = self._arguments(found, chosen, namespace, way, private, visitor)
        except (SdhubError, ValueError) as error:
            yield markup.status(str(error), "bad"), "", gr.Button(interactive=True)
            return
        lines: list[str] = []
        yield markup.status("Publishing; this page may be left open."), markup.log(lines, busy=True), no_button()
        for event in making.make(words, visitor, self.limits):
            if not event.ended and not event.line:
                yield gr.skip(), gr.skip(), gr.skip()
            elif not event.ended:
                lines = [*lines, event.line][-making.LINES :]
                yield gr.skip(), markup.log(lines, busy=True), no_button()
            elif event.result is not None:
                failed = any(each["status"] == "failed" for each in event.result["variants"])
                kind, word = ("bad", "Some variants failed.") if failed else ("good", "Published.")
                html = markup.results(event.result) + markup.log(lines, busy=False)
                yield markup.status(word, kind), html, gr.Button(interactive=True)
            else:
                yield markup.status(event.error, "bad"), markup.log(lines, busy=False), gr.Button(interactive=True)

    def _arguments(
        self, found: Look | None, chosen: list[str], namespace: str, way: str, private: bool, visitor: Hub
    ) -> list[str]:
        if found is None:
            raise ValueError("Look at a checkpoint first.")
        looking.require_size(found.checkpoint, self.limits)
        if visitor.token is None:
            raise ValueError("Sign in first: variants go into your own namespace.")
        offered = {choice.name for choice in found.choices if choice.reason is None}
        if not chosen or not set(chosen) <= offered:
            raise ValueError("Choose at least one variant.")
        target = str(namespace or "").strip()
        if not target:
            raise ValueError("Say which namespace to publish to.")
        repository_id(target, "name")
        return making.arguments(found.source, sorted(chosen), target, create_pr=way == PULL, private=bool(private))


def no_button() -> Any:
    """Publish, while it is done already."""
    return gr.Button(interactive=False)


def name_of(profile: gr.OAuthProfile | None) -> str:
    """The namespace of who signed in."""
    return profile.username if profile else ""


def build(page: Page, *, webhook: bool) -> gr.Blocks:
    """The page."""

    def look(source: str, token: gr.OAuthToken | None) -> tuple[Any, ...]:
        return page.look(source, page.visitor(token))

    def look_unsigned(source: str) -> tuple[Any, ...]:
        return page.look(source, page.visitor(None))

    def publish(
        found: Look | None, chosen: list[str], namespace: str, way: str, private: bool, token: gr.OAuthToken | None
    ) -> Iterator[tuple[Any, Any, Any]]:
        yield from page.publish(found, chosen, namespace, way, private, page.visitor(token))

    def publish_unsigned(
        found: Look | None, chosen: list[str], namespace: str, way: str, private: bool
    ) -> Iterator[tuple[Any, Any, Any]]:
        yield from page.publish(found, chosen, namespace, way, private, page.visitor(None))

    with gr.Blocks(title="Publish device-ready variants", analytics_enabled=False) as blocks:
        gr.HTML(markup.HEADER, padding=False)
        seen = gr.State(None)
        if page.oauth:
            gr.LoginButton()
        source = gr.Textbox(
            label="Checkpoint", placeholder="org/name", max_length=looking.MAX_SOURCE, lines=1, elem_id="source"
        )
        go = gr.Button("Look at it", variant="primary", elem_id="look")
        status = gr.HTML(markup.status("Nothing is downloaded but headers."), elem_id="status", padding=False)
        facts = gr.HTML("", elem_id="found", padding=False)
        chosen = gr.CheckboxGroup([], label="Variants to publish", visible=False, elem_id="variants")
        namespace = gr.Textbox(label="Your namespace", max_length=96, lines=1, elem_id="namespace")
        way = gr.Radio([COMMIT, PULL], value=COMMIT, label="As", elem_id="way")
        private = gr.Checkbox(False, label="Private repositories", elem_id="private")
        make = gr.Button("Publish", variant="primary", interactive=False, elem_id="publish")
        if not page.oauth and not is_here(page.hub):
            gr.HTML(markup.status("Signing in is not set up here (hf_oauth): nothing can be published."))
        gr.HTML(markup.status(str(page.limits)), elem_id="limits", padding=False)
        waiting = gr.HTML(markup.status(str(making.LINE)), elem_id="queue", padding=False)
        done = gr.HTML("", elem_id="done", padding=False)
        if webhook:
            gr.HTML(markup.status("The webhook of this Space is on, at /webhook."), padding=False)
        gr.on(
            [go.click, source.submit],
            look if page.oauth else look_unsigned,
            [source],
            [status, facts, chosen, make, seen],
            trigger_mode="once",
            api_visibility="private",
        )
        make.click(
            publish if page.oauth else publish_unsigned,
            [seen, chosen, namespace, way, private],
            [status, done, make],
            show_progress="hidden",
            trigger_mode="once",
            api_visibility="private",
        )
        blocks.load(lambda: markup.status(str(making.LINE)), None, [waiting], api_visibility="private")
        if page.oauth:
            blocks.load(name_of, None, [namespace], api_visibility="private")
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
    }
    light |= {"input_background_fill": "#ffffff", "input_border_color": "#bdbdb6", "input_border_width": "1px"}
    light |= {"checkbox_label_background_fill": "#f3f3f0", "body_text_color": "#1c1e21"}
    dark = {"body_background_fill": "#131519", "block_background_fill": "#1b1e23", "block_border_color": "#343a43"}
    dark |= {"input_background_fill": "#131519", "input_border_color": "#5b626d"}
    dark |= {"checkbox_label_background_fill": "#262a31", "body_text_color": "#e6e7ea"}
    return base.set(**light, **{f"{name}_dark": value for name, value in dark.items()})


def main() -> None:
    """Serve the page and the webhook where the environment says."""
    import uvicorn
    from fastapi import FastAPI

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    hub = endpoint(None)
    bounds = limits.from_environment()
    making.tidy(bounds)
    webhook = hooks.from_environment(hub, bounds)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if webhook is not None:
        app.router.add_route("/webhook", webhook.__call__, methods=["POST"])
    else:
        logging.info("no WEBHOOK_SECRET: the webhook is off")
    page = Page(hub.url, oauth="OAUTH_CLIENT_ID" in os.environ, limits=bounds)
    blocks = build(page, webhook=webhook is not None)
    blocks.queue(max_size=32, default_concurrency_limit=bounds.waiting + 4, api_open=False)
    app = gr.mount_gradio_app(
        app,
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
        Bounded(app, own=["/webhook"]),
        host=host,
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        log_level="warning",
    )


if __name__ == "__main__":
    main()
