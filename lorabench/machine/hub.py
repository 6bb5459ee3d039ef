"""The Hugging Face Hub where it cannot be reached: the local cache, or one plain sentence."""

import os
import socket
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

_PROBE_TIMEOUT_S = 3.0
_PORTS = {"http": 80, "https": 443}
_UNREACHABLE = {
    *("LocalEntryNotFoundError", "OfflineModeIsEnabled"),
    *("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout"),
}
_TRUE = ("1", "true", "yes", "on")


def prefer_cache_if_unreachable(environment: Mapping[str, str] = os.environ) -> None:
    """Go offline at once where the Hub does not answer: its clients would retry for half a minute for each file."""
    if is_offline(environment):
        return
    host, port = hub_address(environment)
    try:
        socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        # It is read when the Hub's client is imported, which may have been before, as in a notebook.
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            setattr(constants, "HF_HUB_OFFLINE", True)  # noqa: B010
        if environment.get("LOCAL_RANK", "0") == "0":
            reason = error.strerror or error
            print(
                f"{host}:{port} cannot be reached ({reason}): using the local cache only", file=sys.stderr, flush=True
            )


def is_offline(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the Hub is not to be asked."""
    return environment.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def hub_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port that a request to the Hub connects to first: its own, or the proxy's."""
    endpoint = urlsplit(environment.get("HF_ENDPOINT") or "https://huggingface.co")
    names = (f"{endpoint.scheme}_proxy", f"{endpoint.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    proxy = next((environment[name] for name in names if environment.get(name)), None)
    target = endpoint if proxy is None else urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "huggingface.co", target.port or _PORTS.get(target.scheme, 443)


def explain_hub_error(error: Exception, revision_flag: str = "--revision") -> str:
    """The cause, in plain words, of what a library of the Hub raised while fetching a model or data set.

    Args:
        revision_flag: what names the version.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = {type(item).__name__ for item in chain}
    if "GatedRepoError" in names:
        return "gated on the Hub; accept its licence there, then `hf auth login` or set HF_TOKEN"
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return "not on the Hub, or private; check the name, or `hf auth login`"
    if "RevisionNotFoundError" in names:
        return f"the Hub has no such {revision_flag} of it"
    if names & _UNREACHABLE:
        return "the Hub cannot be reached (or HF_HUB_OFFLINE is set) and it is not in the local cache"
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it brings Python code of its own; expected --trust-remote-code, if you trust its author"
    if not text:
        return type(error).__name__
    first = text.splitlines()[0].strip()
    # A line that announces a list says nothing without it.
    return (" ".join(text.split()) if first.endswith(":") else first).rstrip(".")
