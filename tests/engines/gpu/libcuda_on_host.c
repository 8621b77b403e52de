/* A CUDA driver on the memory of the host, for `test_real_libraries.py`: the functions that the engines need, by the
 * names and types of cuda.h, for cuda-bindings (by cuGetProcAddress_v2) and PyCUDA (by symbols). Work is done at once,
 * or kept while a stream is captured. A call that needs a context fails unless one is current in its thread. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, NOT_FOUND = 500, UNSUPPORTED = 900 };
enum { TOTAL = 1 << 30, HEADER = 256, OPERATIONS = 64 };

typedef uint64_t Device;
typedef struct {
    size_t src_x, src_y;
    int src_type;
    const void *src_host;
    Device src_device;
    void *src_array;
    size_t src_pitch, dst_x, dst_y;
    int dst_type;
    void *dst_host;
    Device dst_device;
    void *dst_array;
    size_t dst_pitch, width, height;
} Copy2D;
typedef struct { char *target; const char *source; size_t bytes; unsigned char value; } Operation;
typedef struct { int count; Operation operations[OPERATIONS]; } Work;
typedef struct { int timed; struct timespec time; } Event;

static _Thread_local int current;
static int context, retained, held;
static size_t used;
static Work *capturing;

/* What was made and not destroyed, device memory aside. */
int objects_held(void) { return held; }
int contexts_retained(void) { return retained; }

#define NEEDS_CONTEXT if (!current) return INVALID_CONTEXT

static void run(const Operation *o) {
    if (o->source) memcpy(o->target, o->source, o->bytes); else memset(o->target, o->value, o->bytes);
}

static int put(char *target, const char *source, size_t bytes, unsigned char value) {
    Operation operation = {target, source, bytes, value};
    NEEDS_CONTEXT;
    if (!capturing) run(&operation);
    else if (capturing->count == OPERATIONS) return UNSUPPORTED;
    else capturing->operations[capturing->count++] = operation;
    return SUCCESS;
}

static int made(void **object, size_t bytes) {
    NEEDS_CONTEXT;
    *object = calloc(1, bytes);
    held++;
    return SUCCESS;
}

static int destroyed(void *object) {
    NEEDS_CONTEXT;
    free(object);
    held--;
    return SUCCESS;
}

int cuInit(unsigned flags) { return getenv("NO_GPU") ? NO_DEVICE : SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 12020; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "On the host", length); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = TOTAL; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 0;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **made_context, int device) { retained++; *made_context = &context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return SUCCESS; }
int cuCtxPushCurrent_v2(void *pushed) {
    if (pushed != &context || !retained) return INVALID_CONTEXT;
    current++;
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void **popped) { NEEDS_CONTEXT; current--; *popped = &context; return SUCCESS; }
int cuCtxGetCurrent(void **found) { *found = current ? &context : NULL; return SUCCESS; }
int cuCtxSynchronize(void) { NEEDS_CONTEXT; return SUCCESS; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEEDS_CONTEXT;
    *free_bytes = TOTAL - used;
    *total = TOTAL;
    return SUCCESS;
}
int cuMemAlloc_v2(Device *memory, size_t bytes) {
    char *block;
    NEEDS_CONTEXT;
    if (bytes > TOTAL - used) return OUT_OF_MEMORY;
    block = aligned_alloc(HEADER, HEADER + (bytes + HEADER - 1) / HEADER * HEADER);
    *(size_t *)block = bytes;
    memset(block + HEADER, 0xFF, bytes);
    used += bytes;
    *memory = (Device)(block + HEADER);
    return SUCCESS;
}
int cuMemFree_v2(Device memory) {
    char *block = (char *)memory - HEADER;
    NEEDS_CONTEXT;
    used -= *(size_t *)block;
    free(block);
    return SUCCESS;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { return made(memory, bytes); }
int cuMemFreeHost(void *memory) { return destroyed(memory); }

int cuMemsetD8Async(Device target, unsigned char value, size_t bytes, void *stream) {
    return put((char *)target, NULL, bytes, value);
}
int cuMemcpyHtoDAsync_v2(Device target, const void *source, size_t bytes, void *stream) {
    return put((char *)target, source, bytes, 0);
}
int cuMemcpyDtoHAsync_v2(void *target, Device source, size_t bytes, void *stream) {
    return put(target, (const char *)source, bytes, 0);
}
int cuMemcpyDtoDAsync_v2(Device target, Device source, size_t bytes, void *stream) {
    return put((char *)target, (const char *)source, bytes, 0);
}
int cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    int status = copy->src_type == 2 && copy->dst_type == 2 ? SUCCESS : UNSUPPORTED;
    for (size_t row = 0; row < copy->height && !status; row++)
        status = put((char *)copy->dst_device + row * copy->dst_pitch,
                     (const char *)copy->src_device + row * copy->src_pitch, copy->width, 0);
    return status;
}

int cuStreamCreate(void **stream, unsigned flags) { return made(stream, 1); }
int cuStreamDestroy_v2(void *stream) { return destroyed(stream); }
int cuStreamSynchronize(void *stream) { NEEDS_CONTEXT; return capturing ? UNSUPPORTED : SUCCESS; }
int cuEventCreate(Event **event, unsigned flags) {
    int status = made((void **)event, sizeof(Event));
    if (!status) (*event)->timed = !(flags & 2);
    return status;
}
int cuEventDestroy_v2(void *event) { return destroyed(event); }
int cuEventRecord(Event *event, void *stream) { NEEDS_CONTEXT; return clock_gettime(CLOCK_MONOTONIC, &event->time); }
int cuEventSynchronize(Event *event) { NEEDS_CONTEXT; return SUCCESS; }
int cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *end) {
    if (!start->timed || !end->timed) return UNSUPPORTED;
    *milliseconds = (end->time.tv_sec - start->time.tv_sec) * 1e3 + (end->time.tv_nsec - start->time.tv_nsec) / 1e6;
    return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

int cuStreamBeginCapture_v2(void *stream, int mode) { return made((void **)&capturing, sizeof(Work)); }
int cuStreamEndCapture(void *stream, Work **graph) { *graph = capturing; capturing = NULL; return SUCCESS; }
int cuGraphInstantiateWithFlags(Work **executable, const Work *graph, unsigned long long flags) {
    int status = made((void **)executable, sizeof(Work));
    if (!status) **executable = *graph;
    return status;
}
int cuGraphDestroy(Work *graph) { return destroyed(graph); }
int cuGraphExecDestroy(Work *executable) { return destroyed(executable); }
int cuGraphLaunch(Work *executable, void *stream) {
    for (int index = 0; index < executable->count; index++) run(&executable->operations[index]);
    return SUCCESS;
}

int cuGetErrorString(int status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == NO_DEVICE ? "no CUDA-capable device is detected" : "failed";
    return SUCCESS;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found);

#define FUNCTION(name) {#name, name}
static const struct { const char *name; void *function; } FUNCTIONS[] = {
    FUNCTION(cuInit), FUNCTION(cuDriverGetVersion), FUNCTION(cuDeviceGetCount), FUNCTION(cuDeviceGet),
    FUNCTION(cuDeviceGetName), FUNCTION(cuDeviceTotalMem_v2), FUNCTION(cuDeviceGetAttribute),
    FUNCTION(cuDevicePrimaryCtxRetain), FUNCTION(cuDevicePrimaryCtxRelease_v2), FUNCTION(cuCtxPushCurrent_v2),
    FUNCTION(cuCtxPopCurrent_v2), FUNCTION(cuCtxSynchronize), FUNCTION(cuMemGetInfo_v2), FUNCTION(cuMemAlloc_v2),
    FUNCTION(cuMemFree_v2), FUNCTION(cuMemHostAlloc), FUNCTION(cuMemFreeHost), FUNCTION(cuMemsetD8Async),
    FUNCTION(cuMemcpyHtoDAsync_v2), FUNCTION(cuMemcpyDtoHAsync_v2), FUNCTION(cuMemcpyDtoDAsync_v2),
    FUNCTION(cuMemcpy2DAsync_v2), FUNCTION(cuStreamCreate), FUNCTION(cuStreamDestroy_v2),
    FUNCTION(cuStreamSynchronize), FUNCTION(cuEventCreate), FUNCTION(cuEventDestroy_v2), FUNCTION(cuEventRecord),
    FUNCTION(cuEventSynchronize), FUNCTION(cuEventElapsedTime_v2), FUNCTION(cuStreamBeginCapture_v2),
    FUNCTION(cuStreamEndCapture), FUNCTION(cuGraphInstantiateWithFlags), FUNCTION(cuGraphDestroy),
    FUNCTION(cuGraphExecDestroy), FUNCTION(cuGraphLaunch), FUNCTION(cuGetErrorString),
    FUNCTION(cuGetProcAddress_v2),
};

/* A function by its name, whose version number may be left out. An older driver is one without the function that the
 * environment names. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    const char *missing = getenv("MISSING_FUNCTION");
    *function = NULL;
    for (size_t index = 0; index < sizeof(FUNCTIONS) / sizeof(FUNCTIONS[0]); index++) {
        const char *candidate = FUNCTIONS[index].name;
        size_t length = strlen(name);
        if (!strncmp(candidate, name, length) && (!candidate[length] || !strcmp(candidate + length, "_v2")))
            *function = FUNCTIONS[index].function;
    }
    if (missing && !strcmp(missing, name)) *function = NULL;
    if (found) *found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
