"""paceline's engines behind the OpenAI API: `paceline serve`.

    serve(choice, options, ...)   until a signal; see `server`

    server        the port, the engine, signals
    app           the paths
    completions   one request: body, limits, answer, a client that leaves
    protocol      the body's keys, errors
    dispatch      the queue before the engine; its tokens out of its threads
    answers       OpenAI's JSON and events
    detokenize    text in whole characters, stop texts
    metrics       Prometheus

Decoding is greedy and a prompt has one answer, as the engines have it. This is the only room
that imports starlette and uvicorn.
"""

from paceline.serve.server import ServeOptions, serve

__all__ = ["ServeOptions", "serve"]
