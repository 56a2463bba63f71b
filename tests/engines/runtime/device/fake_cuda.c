/* A CUDA driver whose device is memory of the host: 1 MB of it. Every call is written down in `said`. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kOutOfMemory = 2, kLegacyNotCaptured = 906, kMost = 1 << 20 };
typedef void* Handle;
static char said[1 << 16];
static size_t used, next = 100;

char const* takeSaid(void) {
    static char copy[sizeof said];
    strcpy(copy, said);
    said[0] = 0;
    return copy;
}
static int say(char const* name, Handle a, Handle b) {
    sprintf(said + strlen(said), "%s %zu %zu\n", name, (size_t)a, (size_t)b);
    return 0;
}
static int make(Handle* made) {
    *made = (Handle)next++;
    return 0;
}
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int* device, int index) { return *device = index; }
int cuDevicePrimaryCtxRetain(Handle* context, int device) { return device + make(context); }
int cuCtxSetCurrent(Handle context) { return !context; }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = kMost - used;
    *total = kMost;
    return 0;
}
/* The size lies before the memory. */
static int take(size_t size, void** address) {
    if (used + size > kMost) return kOutOfMemory;
    used += size;
    char* block = aligned_alloc(256, (size + 511) / 256 * 256);
    *(size_t*)block = size;
    *address = block + 256;
    return 0;
}
static int give(void* address) {
    used -= *(size_t*)((char*)address - 256);
    free((char*)address - 256);
    return 0;
}
int cuMemAlloc_v2(uint64_t* address, size_t size) { return take(size, (void**)address); }
int cuMemFree_v2(uint64_t address) { return give((void*)address); }
int cuMemHostAlloc(Handle* address, size_t size, unsigned flags) { return flags + take(size, address); }
int cuMemFreeHost(Handle address) { return give(address); }
static int copy(void* to, void const* from, size_t size, char const* name, Handle stream) {
    memcpy(to, from, size);
    return say(name, stream, (Handle)size);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, void* from, size_t n, Handle s) { return copy((void*)to, from, n, "in", s); }
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, Handle s) { return copy(to, (void*)from, n, "out", s); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, Handle s) {
    return copy((void*)to, (void*)from, n, "across", s);
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t n) { return copy(to, (void*)from, n, "out now", 0); }
int cuStreamCreate(Handle* stream, unsigned flags) { return flags + make(stream); }
int cuStreamDestroy_v2(Handle stream) { return say("destroy", stream, 0); }
int cuStreamSynchronize(Handle stream) { return say("wait", stream, 0); }
int cuEventCreate(Handle* event, unsigned flags) { return flags != 2 || make(event); }
int cuEventRecord(Handle event, Handle stream) { return say("record", event, stream); }
int cuEventDestroy_v2(Handle event) { return say("drop", event, 0); }
int cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { return flags + say("after", stream, event); }
int cuStreamBeginCapture_v2(Handle stream, int mode) {
    return mode != 1 || !stream ? kLegacyNotCaptured : say("begin", stream, 0);
}
int cuStreamEndCapture(Handle stream, Handle* graph) { return say("end", stream, 0) + make(graph); }
int cuGraphInstantiateWithFlags(Handle* made, Handle graph, unsigned long long flags) {
    return flags + say("instantiate", graph, 0) + make(made);
}
int cuGraphDestroy(Handle graph) { return say("destroy graph", graph, 0); }
int cuGraphLaunch(Handle graph, Handle stream) { return say("launch", graph, stream); }
int cuGraphExecDestroy(Handle graph) { return say("forget", graph, 0); }
int cuGetErrorString(int code, char const** text) {
    *text = code == kOutOfMemory ? "out of memory" : "something else";
    return 0;
}
