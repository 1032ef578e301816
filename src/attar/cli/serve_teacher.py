"""`attar serve-teacher`: one teacher for everyone."""

from typing import Annotated

from cyclopts import Parameter

from attar.serving.config import ServeConfig


def serve_teacher(
    *,
    teacher: str,
    options: Annotated[ServeConfig, Parameter(name="*")],
) -> None:
    """Serve a teacher to others, behind the endpoints that embedding services have.

    `attar embed --teacher http://HOST:PORT/v1#NAME` asks it, with the key in ATTAR_TEACHER_API_KEY;
    so does any client of infinity's, Jina's or OpenAI's `/v1/embeddings`. Images travel in the
    request; a path or an address is refused. `/v1/usage` and `/metrics` tell what was asked.

    For example:

    `attar serve-teacher --teacher ViT-B-32/openai --keys keys.txt --usage usage.sqlite --port 7997`

    Parameters
    ----------
    teacher
        As in `attar distill`, but one that is here.
    """
    import importlib.util

    from attar.device import prepare_process
    from attar.errors import UsageError
    from attar.serving.keys import read_keys
    from attar.teachers.registry import describe_teacher_spec, load_teacher

    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {' and '.join(missing)}: run pip install 'attar[serve]'")
    if describe_teacher_spec(teacher).kind == "remote":
        raise UsageError(f"teacher {teacher} is served already; give one whose weights are here")
    read_keys(options.keys)
    prepare_process()
    from attar.serving.app import serve

    serve(load_teacher(teacher), options)
