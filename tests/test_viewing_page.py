"""The viewer's page, clicked through in a real browser."""

import base64
import contextlib
import re
import shutil
import threading

import cv2
import keras
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import brightness_model, write_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from werkzeug.serving import make_server

from segdrop import predict
from segdrop.viewing.server import make_app
from segdrop.viewing.session import Session

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium, or no chromedriver, on the path")

HOSTILE = "<img src=x onerror=alert(1)>.png"
GREY = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (48, 1))  # darkest at the left
VOLUME = np.zeros((34, 40, 5), np.uint8)
VOLUME[:17, :, 2] = 255
VOLUME[:, :, 3] = 255


def slope_model(rate=0.3):
    """A "network" whose probability rises with the brightness, with dropout before it."""
    inputs = keras.Input((None, None, 3))
    values = keras.layers.SpatialDropout2D(rate, seed=0, name="drop")(inputs)
    pick = keras.layers.Conv2D(1, 1, activation="sigmoid", name="pick")
    model = keras.Model(inputs, pick(values))
    pick.set_weights([np.full((1, 1, 3, 1), 0.01, "float32"), np.array([-3.825], "float32")])
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    cv2.imwrite(str(folder / "a.png"), GREY)
    nibabel.Nifti1Image(VOLUME, np.eye(4)).to_filename(folder / "volume.nii.gz")
    return folder


@contextlib.contextmanager
def serving(run, inputs):
    """A server's address, and its session."""
    temporary = run.with_name(f"{run.name} temporary")
    temporary.mkdir()
    session = Session(run, inputs, temporary)
    server = make_server("127.0.0.1", 0, make_app(session, "secret"), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}/secret/", session
    server.shutdown()
    server.server_close()
    session.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, files):
    """Servers of sessions by the run's name, and their addresses."""
    home = tmp_path_factory.mktemp("served")
    write_run(home / "slope", slope_model(), class_names=("background", "cell"))
    write_run(home / "classes", brightness_model(classes=3), class_names=("background", "never", HOSTILE))
    with serving(home / "slope", [str(files)]) as (slope, _), serving(home / "classes", [str(files)]) as (classes, _):
        yield {"slope": slope, "classes": classes}, home


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver, folder / "downloads"
    driver.quit()


class Page:
    """The page in the browser, which has nothing to complain about."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition):
        return WebDriverWait(self.driver, 60, 0.05).until(lambda _: condition())

    def shows(self, name, percent):
        """Wait until the image is open and its mask has that share of foreground."""
        self.wait(lambda: self["name"].text == name and self["share"].text.startswith(f", {percent}"))
        self.wait(self["download"].is_enabled)

    def move(self, name, *keys):
        self[name].send_keys(*keys)

    def pixels(self, name):
        """RGBA of a canvas, (H, W, 4)."""
        width, height, values = self.run(
            """const canvas = document.getElementById(arguments[0]), {width, height} = canvas;
            return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];""",
            name,
        )
        return np.array(values, np.uint8).reshape(height, width, 4)

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(browser, served):
    page = Page(browser[0], served[0]["slope"])
    page.shows("a.png", "cell 50.00%")
    yield page
    assert page.complaints() == []


def test_the_first_file_is_shown_at_once_with_mask_and_maps(page):
    np.testing.assert_array_equal(page.pixels("image")[..., :3], np.repeat(GREY[..., None], 3, axis=2))
    colour = np.array([0x17, 0xBE, 0xCF])  # of the first class, as in an overlay of `segdrop predict`
    expected = np.where(GREY[..., None] > 127, 0.55 * GREY[..., None] + 0.45 * colour, GREY[..., None])
    assert np.abs(page.pixels("mask")[..., :3] - expected).max() <= 1
    probability, uncertainty = (page.pixels(name)[..., :3].sum(axis=-1) for name in ("probability", "uncertainty"))
    assert (np.diff(probability[0]) >= 0).all() and probability[0, 0] < 200 < 600 < probability[0, -1]
    assert uncertainty[0].argmax() in (39, 40) and uncertainty[0, 0] < uncertainty[0, 40]
    assert page["highest"].text == "0.69 nats"


def test_the_threshold_moves_by_keyboard_and_the_download_follows_it(page, browser, served, files, tmp_path):
    page.move("threshold", *[Keys.ARROW_RIGHT] * 30)
    assert page["threshold-number"].text == "0.8"
    done = predict(served[1] / "slope", files / "a.png", tmp_path / "out", threshold=0.8)
    share = done.files[0]["share cell"]
    assert 0.2 < share < 0.4
    page.shows("a.png", f"cell {100 * share:.2f}%")
    page["download"].click()
    got = browser[1] / "a.png"
    page.wait(got.is_file)
    assert got.read_bytes() == (tmp_path / "out" / "a.png").read_bytes()
    page.move("threshold", *[Keys.ARROW_LEFT] * 30)
    page.shows("a.png", "cell 50.00%")


def test_samples_give_what_predict_says_of_as_many(page, served, files, tmp_path):
    Select(page["measure"]).select_by_visible_text("mutual information")
    page.wait(lambda: page["highest"].text == "0.0010 nats")  # one prediction does not disagree with itself
    page.move("samples", *[Keys.ARROW_RIGHT] * 5)
    assert page["samples-number"].text == "5"
    page.wait(lambda: page["highest"].text != "0.0010 nats" and page["download"].is_enabled())
    predict(served[1] / "slope", files / "a.png", tmp_path / "out", mc_samples=5, uncertainty=True)
    highest = tifffile.imread(tmp_path / "out" / "a_uncertainty.tif")[2].max()
    assert page["highest"].text == f"{highest:.2g} nats"
    assert page["measure-name"].text == "mutual information"


def test_slices_are_stepped_through_by_keyboard(page):
    Select(page["file"]).select_by_visible_text("volume.nii.gz")
    page.shows("volume.nii.gz", "cell 50.00% of the slice")
    assert page["slice-number"].text == "3 of 5"
    page.move("slice", Keys.ARROW_RIGHT)
    page.shows("volume.nii.gz", "cell 100.00%")
    assert page["slice-number"].text == "4 of 5" and page.pixels("image")[..., 0].min() == 255
    page.move("slice", Keys.HOME)
    page.shows("volume.nii.gz", "cell 0.00%")
    assert page["slice-number"].text == "1 of 5"


def test_a_file_is_chosen_from_the_disk_and_its_hostile_name_is_text(page, tmp_path):
    cv2.imwrite(str(tmp_path / HOSTILE), 255 - GREY)
    page["upload"].send_keys(str(tmp_path / HOSTILE))
    page.shows(HOSTILE, "cell 50.00%")
    assert page.pixels("image")[0, 0, 0] == 255
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page["slices"].is_displayed() is False


DROP = """const [name, text, count] = arguments, data = new DataTransfer();
    const content = Uint8Array.from(atob(text), one => one.charCodeAt());
    for (let i = 0; i < count; i++) data.items.add(new File([content], name));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));"""


def test_a_file_is_dropped_and_what_is_none_is_told(page):
    def drop(name, content, count=1):
        page.run(DROP, name, base64.b64encode(content).decode(), count)

    drop("b.png", cv2.imencode(".png", np.full((20, 30), 255, np.uint8))[1].tobytes())
    page.shows("b.png", "cell 100.00%")
    drop("<b>c</b>.png", b"no image")
    page.wait(page["problem"].is_displayed)
    assert page["problem"].text.startswith("b>.png: cannot be decoded")
    page.shows("b.png", "cell 100.00%")  # the image is still there, and its mask
    assert page["problem"].is_displayed()
    (refused,) = page.complaints()
    assert "400 (BAD REQUEST)" in refused
    drop("d.png", b"", 2)
    assert page["problem"].text == "Drop one file at a time."
    drop("b.png", cv2.imencode(".png", np.zeros((20, 30), np.uint8))[1].tobytes())
    page.shows("b.png", "cell 0.00%")
    assert not page["problem"].is_displayed()


def test_a_picture_is_enlarged_and_made_small_again_by_mouse_and_by_keyboard(page):
    mask, box = page["mask"], page.driver.find_element(By.CSS_SELECTOR, "[aria-label='Enlarge mask']")
    small = mask.rect["width"]
    box.send_keys(Keys.SPACE)
    assert mask.rect["width"] == page.run("return innerWidth")
    box.send_keys(Keys.ESCAPE)
    assert mask.rect["width"] == small
    mask.click()
    assert mask.rect["width"] > small
    mask.click()
    assert mask.rect["width"] == small


def test_the_pointer_reads_the_values_of_a_pixel(page):
    webdriver.ActionChains(page.driver).move_to_element(page["probability"]).perform()
    page.wait(lambda: page["pixel"].text)
    pattern = r"Column (\d+), row (\d+): (\w+), probability ([\d.]+)"
    column, row, name, value = re.match(pattern, page["pixel"].text).groups()
    grey = GREY[int(row), int(column)]
    assert abs(int(column) - 40) <= 1 and abs(int(row) - 24) <= 1
    assert float(value) == pytest.approx(1 / (1 + np.exp(3.825 - 0.03 * grey)), abs=2e-3)
    assert name == ("cell" if grey > 127 else "background")


def test_every_control_is_reached_with_the_tab_key(page):
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        active = page.driver.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("aria-label"))
    wanted = ["upload", "file", "samples", "threshold", "measure", "download"]
    wanted += [f"Enlarge {name}" for name in ("image", "mask", "probability", "uncertainty")]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_1280_pixels_in_light_and_dark(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.run("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [1280, True]
    ground, text = page.run(
        """const style = getComputedStyle(document.body);
        return [style.backgroundColor, style.color].map(one => Number(one.match(/\\d+/)[0]));"""
    )
    assert (ground > 200 and text < 60) if scheme == "light" else (ground < 60 and text > 200)


def test_of_several_classes_one_is_chosen_and_what_has_no_effect_is_not_offered(browser, served):
    page = Page(browser[0], served[0]["classes"])
    page.wait(lambda: page["name"].text == "a.png" and page["download"].is_enabled())
    assert page["share"].text == f", never 0.00%, {HOSTILE} 50.00%"
    assert not page["thresholds"].is_displayed() and not page["samples"].is_enabled()
    assert "no dropout" in page["unsampled"].text
    bright = page.pixels("probability").copy()
    Select(page["channel"]).select_by_visible_text("never")
    page.wait(lambda: page["channel-name"].text == "never" and (page.pixels("probability") != bright).any())
    assert bright[0, -1, :3].sum() > 600 > 200 > page.pixels("probability")[0, -1, :3].sum()
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.complaints() == []


def test_what_is_shown_never_belongs_to_another_image(browser, files, tmp_path, monkeypatch):
    release = threading.Event()
    with serving(write_run(tmp_path / "run", slope_model()), [str(files)]) as (address, session):
        page = Page(browser[0], address)
        page.wait(lambda: page["share"].text and page["download"].is_enabled())
        function = session._function(0)

        def slow(images, key):
            assert release.wait(60)
            return function(images, key)

        monkeypatch.setattr(session, "_function", lambda samples: slow)
        Select(page["file"]).select_by_visible_text("volume.nii.gz")
        page.wait(lambda: page["slice-number"].text == "3 of 5")
        assert page.pixels("image").shape == (34, 40, 4)
        assert not any(page.pixels(name).any() for name in ("mask", "probability", "uncertainty"))
        assert page["share"].text == "" and not page["download"].is_enabled()
        assert page["progress"].is_displayed() and page["status"].text == "Predicting, 0%"
        release.set()
        page.wait(lambda: page["share"].text and page["download"].is_enabled())
        assert page.pixels("mask").any() and not page["progress"].is_displayed()
    assert page.complaints() == []


def test_a_server_that_has_gone_is_told(browser, tmp_path):
    with serving(write_run(tmp_path / "run", slope_model()), ()) as (address, _):
        page = Page(browser[0], address)
        page.wait(lambda: page["run"].text)
    page.run(DROP, "b.png", "", 1)
    page.wait(page["problem"].is_displayed)
    assert page["problem"].text.startswith("The viewer does not answer any more")
    page.complaints()
