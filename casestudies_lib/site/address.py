"""Tells the pages where they will stand: sitemap, canonical links and previews, only where an address is given."""

from pathlib import Path
from urllib.parse import urlsplit

import yaml

from casestudies_lib.runner.errors import Mistake

_EXTENSIONS = ["sphinx_sitemap", "sphinxext.opengraph"]
_SETTINGS = {
    "sitemap_url_scheme": "{link}",
    "sitemap_show_lastmod": False,
    "ogp_enable_meta_description": False,  # the pages have one already
    "ogp_social_cards": {"enable": False},  # a picture would have to be drawn for each page
}


def check_address(address: str) -> str:
    """Return a base address with its trailing slash.

    Raises:
        Mistake: it is not of the form https://host/path.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise Mistake(f"--base-url {address!r} is no address of a site; write it as https://host/path/")
    return address.rstrip("/") + "/"


def set_address(config: Path, address: str) -> None:
    """Put the address, and what needs it, into a staged `_config.yml`."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["html"]["baseurl"] = address
    sphinx = settings["sphinx"]["config"]
    sphinx["extensions"] += _EXTENSIONS
    sphinx |= _SETTINGS | {"ogp_site_url": address, "html_baseurl": address}
    settings["sphinx"]["config"] = sphinx
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
