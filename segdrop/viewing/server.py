"""The page's server, on this machine's loopback alone: which requests it takes, and what it answers."""

import contextlib
import importlib.resources
import io
import os
import secrets
import shutil
import signal
import socket
import tempfile
import warnings
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from ..conventions import has_class
from ..errors import InputError
from ..images.opening import stem
from ..inference.writer import UNCERTAINTY_MEASURES
from ..printing import say
from ..show.plots import colours_of, heat
from .predictions import RESULT
from .session import MOST_SAMPLES, Gone, Session

try:
    import flask
    from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, LengthRequired, RequestEntityTooLarge
    from werkzeug.serving import WSGIRequestHandler, make_server
except ImportError as error:
    raise InputError('The viewer needs flask: `pip install "segdrop[view]"`.') from error

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")  # by which a browser on this machine may call it
MOST_BYTES = 2**30  # of a file that is sent to the page
_MOST_ASKED = 1000  # bytes, of which samples and threshold are thirty
_PAGE = {"": "view.html", "view.js": "view.js", "view.css": "view.css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def view(run: Path, inputs: Sequence[str] = (), *, port: int | None = None, open_browser: bool = True) -> None:
    """Serve the page until Ctrl-C.

    Args:
        run: a run's folder, a finished sweep's, or an exported .onnx file.
        inputs: files, folders and globs to choose from on the page.
        port: of 127.0.0.1; None: a free one.
        open_browser: show the page in the user's browser.

    Raises:
        FileNotFoundError, InputError: the run, the inputs or the port cannot be used.
    """
    with _listen(port) as listening, _folder() as folder:
        session = Session(run, inputs, folder)
        secret = secrets.token_urlsafe(16)  # other users of this machine reach the port, too, but do not know it
        number = listening.getsockname()[1]
        server = make_server(
            LOOPBACK, number, make_app(session, secret), threaded=True, request_handler=_Quiet, fd=listening.fileno()
        )
        address = f"http://{LOOPBACK}:{number}/{secret}/"
        say(f"{run} in the browser: {address}", "Ctrl-C ends it.")
        if open_browser:
            webbrowser.open(address)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed then, too
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what readers say of odd headers, in threads: see no_warnings
                server.serve_forever()  # it returns at Ctrl-C
        finally:
            session.close()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="segdrop-view-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _listen(port: int | None) -> socket.socket:
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"`port` must be from 0 to 65535, got port={port}.")
    try:
        return socket.create_server((LOOPBACK, port or 0))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InputError(
            f"`port` {port} cannot be used: {reason}; choose another, or leave it out for a free one."
        ) from error


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args) -> None:
        """Say nothing of each request."""


def make_app(session: Session, secret: str) -> flask.Flask:
    """The server's answers; all addresses begin with `secret`."""
    app = flask.Flask(__name__, static_folder=None)
    app.before_request(_refuse_strangers)
    app.after_request(_add_headers)
    app.register_error_handler(InputError, lambda error: _refusal(error, 404 if isinstance(error, Gone) else 400))
    app.register_error_handler(OSError, lambda error: _refusal(error.strerror or error, 500))
    app.register_error_handler(HTTPException, lambda error: _refusal(error.description, error.code))
    app.register_blueprint(_pages(), url_prefix=f"/{secret}")
    app.register_blueprint(_images(session), url_prefix=f"/{secret}")
    app.register_blueprint(_predictions(session), url_prefix=f"/{secret}/images/<int:number>/predictions")
    return app


def _refuse_strangers() -> None:
    """Only a browser that was told this machine's own name, and changes only from the page itself.

    A page from elsewhere can make its own name point here (DNS rebinding), which the Host header then tells, or send a
    form, which Origin tells.
    """
    request = flask.request
    try:
        name = urlsplit(f"//{request.host}").hostname
    except ValueError:
        name = None
    if name not in NAMES:
        raise Forbidden("This server answers to 127.0.0.1 and localhost alone.")
    if request.method not in ("GET", "HEAD") and request.headers.get("Origin") != f"http://{request.host}":
        raise Forbidden("This server is changed from its own page alone.")


def _add_headers(response: flask.Response) -> flask.Response:
    response.headers.update(_HEADERS)
    return response


def _refusal(reason: object, status: int | None) -> tuple[flask.Response, int]:
    return flask.jsonify(error=" ".join(str(reason).split())), status or 500


def _pages() -> flask.Blueprint:
    """The page itself."""
    pages = flask.Blueprint("pages", __name__)

    @pages.get("/", defaults={"name": ""})
    @pages.get("/<name>")
    def page(name: str):
        room, file = ("reporting", name) if name == "style.css" else ("viewing", _PAGE.get(name))
        if file is None:
            raise Gone("There is no such page.")
        content = importlib.resources.files(f"segdrop.{room}").joinpath(file).read_bytes()
        return flask.send_file(io.BytesIO(content), download_name=file)

    return pages


def _images(session: Session) -> flask.Blueprint:
    """The run, and the image that is open."""
    images, network = flask.Blueprint("images", __name__), session.network

    @images.get("/run")
    def run():
        names = network.class_names
        numbers = np.arange(1 << network.channels if network.multilabel else len(names))
        shown = np.stack([has_class(numbers, i, network.multilabel) for i in range(len(names))], axis=1)
        colours = colours_of(network.multilabel)[numbers].round().astype(int).tolist()
        return {
            "name": str(network.path),
            "classes": list(names),
            "values": [
                {"classes": np.flatnonzero(classes).tolist(), "colour": colour if number else None}
                for number, (classes, colour) in enumerate(zip(shown, colours, strict=True))
            ],
            "channels": list(names[-network.channels :]),
            "measures": [*UNCERTAINTY_MEASURES],
            "threshold": network.threshold if network.channels == 1 else None,
            "unsampled": session.unsampled,
            "most_samples": MOST_SAMPLES,
            "most_bytes": MOST_BYTES,
            "files": [name for _, name in session.listed],
            "heat": heat(np.linspace(0, 1, 256)[None], 1)[0].tolist(),
        }

    @images.post("/files/<int:index>")
    def open_listed(index: int):
        return describe(session.open_listed(index))

    @images.post("/images")
    def upload():
        size = flask.request.content_length
        if size is None:
            raise LengthRequired("The file's length must be told.")
        if size > MOST_BYTES:
            raise RequestEntityTooLarge(f"The file has more than {MOST_BYTES:,} bytes; name it on the command line.")

        def write(path: Path) -> None:
            with path.open("wb") as file:
                shutil.copyfileobj(flask.request.stream, file, 2**20)

        return describe(session.open_upload(flask.request.args.get("name", ""), write))

    def describe(number: int) -> dict:
        looked = session.looked(number)
        picture = looked.picture
        size = {"height": picture.height, "width": picture.width, "slices": picture.slices}
        return {"image": number, "name": looked.name, **size}

    @images.get("/images/<int:number>/<int:index>.png")
    def image(number: int, index: int):
        looked = session.looked(number)
        with _inside():
            return flask.Response(looked.png(index), mimetype="image/png")

    return images


def _predictions(session: Session) -> flask.Blueprint:
    """What the networks say of the open image."""
    predictions = flask.Blueprint("predictions", __name__)

    @predictions.post("")
    def predict(number: int):
        if (flask.request.content_length or 0) > _MOST_ASKED:
            raise RequestEntityTooLarge("What is asked is `samples` and `threshold` alone.")
        asked = flask.request.get_json()
        samples, threshold = (asked.get("samples"), asked.get("threshold")) if isinstance(asked, dict) else (None, None)
        if type(samples) is not int or not 0 <= samples <= MOST_SAMPLES:
            raise BadRequest(f"`samples` must be a whole number from 0 to {MOST_SAMPLES}, got {samples!r}.")
        return {"prediction": session.predict(number, samples, threshold)}

    @predictions.get("/<int:key>")
    def state(number: int, key: int):
        prediction = session.prediction(number, key)
        if prediction.problem:
            raise InputError(session.looked(number).named(prediction.problem))
        row = prediction.row if prediction.finished else {}
        return {
            "finished": prediction.finished,
            "done": prediction.course.share,
            "warnings": prediction.warnings,
            "shares": [row[f"share {name}"] for name in session.network.class_names] if row else [],
        }

    @predictions.get("/<int:key>/<any(mask,probability,uncertainty):kind>/<int:plane>/<int:index>")
    def values(number: int, key: int, kind: str, plane: int, index: int):
        prediction = finished(number, key)
        with _inside():
            array = prediction.mask(index) if kind == "mask" else getattr(prediction, kind)(plane, index)
        return flask.Response(array.tobytes(), mimetype="application/octet-stream")

    @predictions.get("/<int:key>/file")
    def file(number: int, key: int):
        path = finished(number, key).mask_file
        name = (stem(session.looked(number).name.rpartition("/")[2]) or "mask") + path.name.removeprefix(RESULT)
        return flask.send_file(path, as_attachment=True, download_name=name)

    def finished(number: int, key: int):
        prediction = session.prediction(number, key)
        if not prediction.finished or prediction.problem:
            raise Gone("This prediction is not finished.")
        return prediction

    return predictions


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    """A slice or a map that is not there is told as such."""
    try:
        yield
    except IndexError as error:
        raise Gone("There is no such slice or map.") from error
