// Another's threads: the OpenMP runtime that PyTorch has loaded. Its workers spin for milliseconds
// after each of its regions, and ours would have to share the cores with them, so that long a
// region of ours runs on them. Nothing is linked and nothing loaded; no runtime, no change.
#pragma once

namespace multihead {

using Work = void (*)(void* data, int worker);

// To be called when our workers wanted for cores: if PyTorch is loaded, gets to know the threads
// that it has for the calling one. `threads` as below.
void meet_borrowed_threads(int threads);

// Runs work(data, worker) for each worker on the spinning threads, the caller among them as worker
// 0, and returns true; false if there are no spinning threads, or not as many as `threads`.
bool run_on_borrowed_threads(int threads, Work work, void* data);

// In a forked child the runtime has lost its threads.
void forget_borrowed_threads();

}  // namespace multihead
