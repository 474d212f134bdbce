"""vLLM with jevons' tiers: an out-of-tree KV connector (V1 API, vLLM 0.32).

    scheduler process                                        worker process
    connector ── scheduler: look, decide ──loads, saves──▶   connector ── worker: bring, save, tell what it took
                     │                                                       │
                     └── Node (names) ──▶ keeper: dram, disk, object ◀── Node (pages)

Loads are asynchronous in vLLM's sense: the request waits, others go on, and vLLM counts a block as cached only once it
has arrived. (With a synchronous load vLLM enters blocks into its prefix cache before they come; a client that leaves
while a bad one is computed again would leave it there.) Saves are copied aside before the step ends, so vLLM may reuse
its blocks at once and a slow keeper delays nobody.

Imports are light: besides what vLLM has loaded already, only msgspec and xxhash.
"""
