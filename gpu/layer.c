/* An OpenCL layer that shows Intel's OpenCL runtime for CPUs to OpenVINO's GPU plugin as an Intel GPU, and counts.
 *
 *   cc -O2 -shared -fPIC -o layer.so layer.c && OPENCL_LAYERS=layer.so python ...
 *
 * What a GPU does and the CPU runtime does not is made up for here, each at its place below. Environment:
 *
 *   EMULATED_GPU_KERNELS      a folder in which built kernels are kept
 *   EMULATED_GPU_IP           the chip's IP version (default Xe-LP, 12.0), EMULATED_GPU_DISCRETE=1 memory of its own
 *   EMULATED_GPU_LOG          print every kernel that is run, and errors
 *
 * `emulated_gpu_counters` is for callers in the same process: see `struct counters`.
 */
#define _GNU_SOURCE
#define CL_TARGET_OPENCL_VERSION 300
#include <CL/cl.h>
#include <CL/cl_icd.h>
#include <CL/cl_layer.h>
#include <CL/cl_ext.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Queries of cl_intel_device_attribute_query and cl_intel_required_subgroup_size, whose header Debian does not have. */
#define INTEL_IP_VERSION 0x4250
#define INTEL_ID 0x4251
#define INTEL_NUM_SLICES 0x4252
#define INTEL_NUM_SUB_SLICES 0x4253
#define INTEL_NUM_EUS 0x4254
#define INTEL_NUM_THREADS 0x4255
#define INTEL_FEATURES 0x4256
#define INTEL_SUB_GROUP_SIZES 0x4108

static const struct _cl_icd_dispatch *next;
static struct _cl_icd_dispatch mine;

static unsigned long setting(const char *name, unsigned long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtoul(value, NULL, 0) : otherwise;
}

static int logging(void) {
    static int on = -1;
    if (on < 0) on = getenv("EMULATED_GPU_LOG") != NULL;
    return on;
}

/* ---- What the device says of itself --------------------------------------------------------------------------- */

static cl_int give(const void *data, size_t n, size_t size, void *value, size_t *ret) {
    if (ret) *ret = n;
    if (value) {
        if (size < n) return CL_INVALID_VALUE;
        memcpy(value, data, n);
    }
    return CL_SUCCESS;
}
#define GIVE(type, x) do { type v_ = (type)(x); return give(&v_, sizeof v_, size, value, ret); } while (0)

static cl_int CL_API_CALL device_info(cl_device_id d, cl_device_info what, size_t size, void *value, size_t *ret) {
    static const char name[] = "Emulated Intel(R) Xe Graphics";
    static const size_t sub_groups[] = {8, 16, 32};
    switch (what) {
    case CL_DEVICE_TYPE: GIVE(cl_device_type, CL_DEVICE_TYPE_GPU);
    case CL_DEVICE_VENDOR_ID: GIVE(cl_uint, 0x8086);
    case CL_DEVICE_NAME: return give(name, sizeof name, size, value, ret);
    case CL_DEVICE_MAX_COMPUTE_UNITS: GIVE(cl_uint, 96);
    case CL_DEVICE_MAX_CLOCK_FREQUENCY: GIVE(cl_uint, 1300);
    case CL_DEVICE_MAX_WORK_GROUP_SIZE: GIVE(size_t, 512);
    case CL_DEVICE_LOCAL_MEM_SIZE: GIVE(cl_ulong, 65536);
    case CL_DEVICE_PARTITION_MAX_SUB_DEVICES: GIVE(cl_uint, 0);
    case CL_DEVICE_HOST_UNIFIED_MEMORY: GIVE(cl_bool, !setting("EMULATED_GPU_DISCRETE", 0));
    case INTEL_IP_VERSION: GIVE(cl_uint, setting("EMULATED_GPU_IP", 12u << 22));
    case INTEL_ID: GIVE(cl_uint, 0x9a49);
    case INTEL_NUM_SLICES: GIVE(cl_uint, 1);
    case INTEL_NUM_SUB_SLICES: GIVE(cl_uint, 6);
    case INTEL_NUM_EUS: GIVE(cl_uint, 16);
    case INTEL_NUM_THREADS: GIVE(cl_uint, 7);
    case INTEL_FEATURES: GIVE(cl_bitfield, 1); /* DP4A and no XMX, whose kernels oneDNN writes in machine code */
    case INTEL_SUB_GROUP_SIZES: return give(sub_groups, sizeof sub_groups, size, value, ret);
    case CL_DEVICE_EXTENSIONS: {
        char all[8192];
        cl_int error = next->clGetDeviceInfo(d, what, sizeof all - 64, all, NULL);
        if (error) return error;
        strcat(all, " cl_khr_subgroups ");
        return give(all, strlen(all) + 1, size, value, ret);
    }
    }
    cl_int error = next->clGetDeviceInfo(d, what, size, value, ret);
    if (error && logging()) fprintf(stderr, "emulated GPU: clGetDeviceInfo 0x%x -> %d\n", what, error);
    return error;
}

static cl_int CL_API_CALL device_ids(cl_platform_id p, cl_device_type t, cl_uint n, cl_device_id *ds, cl_uint *num) {
    return next->clGetDeviceIDs(p, t == CL_DEVICE_TYPE_GPU ? CL_DEVICE_TYPE_CPU : t, n, ds, num);
}

/* ---- Counters ------------------------------------------------------------------------------------------------- */

/* What was asked of the device. Bytes are those of writes, reads, maps and copies, by where they come from and go to:
   memory that host and device share (USM host) counts as the host's. `copies` are single transfers of any direction. */
struct counters {
    uint64_t kernels, waits, copies, host_to_device, device_to_host, within_device;
};
static struct counters counted;
#define COUNT(what, n) __atomic_fetch_add(&counted.what, (n), __ATOMIC_RELAXED)

void emulated_gpu_counters(struct counters *into) {
    uint64_t *from = (uint64_t *) &counted, *to = (uint64_t *) into;
    for (size_t i = 0; i < sizeof counted / sizeof *from; i++) to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

/* ---- Waits ------------------------------------------------------------------------------------------------------ */

/* A wait is counted where something is not done yet and was asked for since the wait before: the plugin waits for each
   output of a graph, one after the other, while the device is at work on all of them, and that is one wait for it. */
static int asked;

static void count_wait(int pending) {
    if (pending && __atomic_exchange_n(&asked, 0, __ATOMIC_RELAXED)) COUNT(waits, 1);
}

static void count_copy(cl_bool blocking) {
    COUNT(copies, 1);
    __atomic_store_n(&asked, 1, __ATOMIC_RELAXED);
    count_wait(blocking);
}

static cl_int CL_API_CALL finish(cl_command_queue q) {
    count_wait(1);
    return next->clFinish(q);
}
static cl_int CL_API_CALL wait_for_events(cl_uint n, const cl_event *events) {
    int pending = 0;
    for (cl_uint i = 0; i < n && !pending; i++) {
        cl_int status = CL_COMPLETE;
        next->clGetEventInfo(events[i], CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, NULL);
        pending = status > CL_COMPLETE;
    }
    count_wait(pending);
    return next->clWaitForEvents(n, events);
}

/* ---- Unified shared memory ------------------------------------------------------------------------------------ */

/* GPUs read past the end of an allocation without harm, and the plugin's kernels do. */
#define PADDING (1u << 16)

static clHostMemAllocINTEL_fn real_host_alloc;
static clSharedMemAllocINTEL_fn real_shared_alloc;
static clDeviceMemAllocINTEL_fn real_device_alloc;
static clMemFreeINTEL_fn real_free;
static clMemBlockingFreeINTEL_fn real_blocking_free;
static clEnqueueMemcpyINTEL_fn real_memcpy;

/* The allocations of the device, to know in which direction a copy goes. */
static struct range { uintptr_t begin, end; } *ranges;
static size_t n_ranges;
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;

static void *remember(void *pointer, size_t n) {
    if (!pointer) return pointer;
    pthread_mutex_lock(&ranges_lock);
    ranges = realloc(ranges, (n_ranges + 1) * sizeof *ranges);
    ranges[n_ranges++] = (struct range){(uintptr_t) pointer, (uintptr_t) pointer + n};
    pthread_mutex_unlock(&ranges_lock);
    return pointer;
}

static void forget(void *pointer) {
    pthread_mutex_lock(&ranges_lock);
    for (size_t i = n_ranges; i-- > 0;)
        if (ranges[i].begin == (uintptr_t) pointer) { ranges[i] = ranges[--n_ranges]; break; }
    pthread_mutex_unlock(&ranges_lock);
}

static int on_device(const void *pointer) {
    int found = 0;
    pthread_mutex_lock(&ranges_lock);
    for (size_t i = 0; i < n_ranges && !found; i++)
        found = ranges[i].begin <= (uintptr_t) pointer && (uintptr_t) pointer < ranges[i].end;
    pthread_mutex_unlock(&ranges_lock);
    return found;
}

static void *CL_API_CALL host_alloc(cl_context c, const cl_mem_properties_intel *p, size_t n, cl_uint a, cl_int *e) {
    return real_host_alloc(c, p, n + PADDING, a, e);
}
static void *CL_API_CALL shared_alloc(cl_context c, cl_device_id d, const cl_mem_properties_intel *p, size_t n,
                                      cl_uint a, cl_int *e) {
    return remember(real_shared_alloc(c, d, p, n + PADDING, a, e), n + PADDING);
}
static void *CL_API_CALL device_alloc(cl_context c, cl_device_id d, const cl_mem_properties_intel *p, size_t n,
                                      cl_uint a, cl_int *e) {
    return remember(real_device_alloc(c, d, p, n + PADDING, a, e), n + PADDING);
}
static cl_int CL_API_CALL free_memory(cl_context c, void *pointer) {
    forget(pointer);
    return real_free(c, pointer);
}
static cl_int CL_API_CALL free_blocking(cl_context c, void *pointer) {
    forget(pointer);
    return real_blocking_free(c, pointer);
}

static cl_int CL_API_CALL copy(cl_command_queue q, cl_bool blocking, void *to, const void *from, size_t n, cl_uint nw,
                               const cl_event *w, cl_event *event) {
    int source = on_device(from), target = on_device(to);
    count_copy(blocking);
    if (source && target) COUNT(within_device, n);
    else if (target) COUNT(host_to_device, n);
    else if (source) COUNT(device_to_host, n);
    return real_memcpy(q, blocking, to, from, n, nw, w, event);
}

static void *CL_API_CALL extension(cl_platform_id p, const char *name) {
    void *found = next->clGetExtensionFunctionAddressForPlatform(p, name);
    if (!found && logging()) fprintf(stderr, "emulated GPU: no %s\n", name);
    if (!found) return NULL;
#define REPLACE(intel, real, with) if (!strcmp(name, intel)) { real = (__typeof__(real)) found; return (void *) with; }
    REPLACE("clHostMemAllocINTEL", real_host_alloc, host_alloc)
    REPLACE("clSharedMemAllocINTEL", real_shared_alloc, shared_alloc)
    REPLACE("clDeviceMemAllocINTEL", real_device_alloc, device_alloc)
    REPLACE("clMemFreeINTEL", real_free, free_memory)
    REPLACE("clMemBlockingFreeINTEL", real_blocking_free, free_blocking)
    REPLACE("clEnqueueMemcpyINTEL", real_memcpy, copy)
#undef REPLACE
    return found;
}

/* ---- Buffers, of which the plugin makes few --------------------------------------------------------------------- */

static cl_int CL_API_CALL write_buffer(cl_command_queue q, cl_mem m, cl_bool blocking, size_t offset, size_t n,
                                       const void *p, cl_uint nw, const cl_event *w, cl_event *event) {
    count_copy(blocking);
    COUNT(host_to_device, n);
    return next->clEnqueueWriteBuffer(q, m, blocking, offset, n, p, nw, w, event);
}
static cl_int CL_API_CALL read_buffer(cl_command_queue q, cl_mem m, cl_bool blocking, size_t offset, size_t n, void *p,
                                      cl_uint nw, const cl_event *w, cl_event *event) {
    count_copy(blocking);
    COUNT(device_to_host, n);
    return next->clEnqueueReadBuffer(q, m, blocking, offset, n, p, nw, w, event);
}
static cl_int CL_API_CALL copy_buffer(cl_command_queue q, cl_mem from, cl_mem to, size_t a, size_t b, size_t n,
                                      cl_uint nw, const cl_event *w, cl_event *event) {
    count_copy(0);
    COUNT(within_device, n);
    return next->clEnqueueCopyBuffer(q, from, to, a, b, n, nw, w, event);
}
static void *CL_API_CALL map_buffer(cl_command_queue q, cl_mem m, cl_bool blocking, cl_map_flags flags, size_t offset,
                                    size_t n, cl_uint nw, const cl_event *w, cl_event *event, cl_int *e) {
    count_copy(blocking);
    if (flags & CL_MAP_READ) COUNT(device_to_host, n);
    if (flags & (CL_MAP_WRITE | CL_MAP_WRITE_INVALIDATE_REGION)) COUNT(host_to_device, n);
    return next->clEnqueueMapBuffer(q, m, blocking, flags, offset, n, nw, w, event, e);
}

/* ---- Programs: kept once built ---------------------------------------------------------------------------------- */

/* Built programs are kept by the hash of their text and options. A program that is read back is another one than the
   plugin has a handle of, and stands in for it. */
static struct kept { cl_program program, other; uint64_t hash; } *kept_programs;
static size_t n_kept;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t hash_of(uint64_t hash, const char *text, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char) text[i]) * 0x100000001b3ull;
    return hash;
}

static void keep(cl_program p, uint64_t hash) {
    pthread_mutex_lock(&kept_lock);
    kept_programs = realloc(kept_programs, (n_kept + 1) * sizeof *kept_programs);
    kept_programs[n_kept++] = (struct kept){p, NULL, hash};
    pthread_mutex_unlock(&kept_lock);
}

/* Returns what is kept of a program; handles are used again, so the newest counts. */
static struct kept kept_of(cl_program p) {
    struct kept found = {p, NULL, 0};
    pthread_mutex_lock(&kept_lock);
    for (size_t i = n_kept; i-- > 0;)
        if (kept_programs[i].program == p) { found = kept_programs[i]; break; }
    pthread_mutex_unlock(&kept_lock);
    return found;
}

static void stand_in(cl_program p, cl_program other) {
    pthread_mutex_lock(&kept_lock);
    for (size_t i = n_kept; i-- > 0;)
        if (kept_programs[i].program == p) { kept_programs[i].other = other; break; }
    pthread_mutex_unlock(&kept_lock);
}

static cl_program built(cl_program p) {
    struct kept kept = kept_of(p);
    return kept.other ? kept.other : p;
}
static cl_kernel CL_API_CALL create_kernel(cl_program p, const char *name, cl_int *e) {
    return next->clCreateKernel(built(p), name, e);
}
static cl_int CL_API_CALL create_kernels(cl_program p, cl_uint n, cl_kernel *ks, cl_uint *ret) {
    return next->clCreateKernelsInProgram(built(p), n, ks, ret);
}
static cl_int CL_API_CALL program_info(cl_program p, cl_program_info what, size_t size, void *value, size_t *ret) {
    return next->clGetProgramInfo(built(p), what, size, value, ret);
}
static cl_int CL_API_CALL build_info(cl_program p, cl_device_id d, cl_program_build_info what, size_t size, void *value,
                                     size_t *ret) {
    return next->clGetProgramBuildInfo(built(p), d, what, size, value, ret);
}
/* The CPU runtime forgets a program's handle with its last release, though kernels of it live: none is let go. */
static cl_int CL_API_CALL release_program(cl_program p) {
    (void) p;
    return CL_SUCCESS;
}

static int read_back(cl_program p, cl_context c, cl_device_id d, const char *path, const char *options) {
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    fseek(file, 0, SEEK_END);
    size_t size = ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(size);
    const unsigned char *view = bytes;
    cl_int error = CL_INVALID_BINARY, status;
    size_t got = fread(bytes, 1, size, file);
    fclose(file);
    cl_program other = got == size ? next->clCreateProgramWithBinary(c, 1, &d, &size, &view, &status, &error) : NULL;
    free(bytes);
    if (!other || error || next->clBuildProgram(other, 1, &d, options, NULL, NULL)) return 0;
    stand_in(p, other);
    return 1;
}

static void write_out(cl_program p, const char *path) {
    size_t size = 0;
    char part[4200];
    if (next->clGetProgramInfo(p, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) || !size) return;
    unsigned char *bytes = malloc(size);
    next->clGetProgramInfo(p, CL_PROGRAM_BINARIES, sizeof bytes, &bytes, NULL);
    snprintf(part, sizeof part, "%s.%d.%lx", path, getpid(), (unsigned long) pthread_self());
    FILE *file = fopen(part, "wb");
    if (file) {
        int whole = fwrite(bytes, 1, size, file) == size;
        if (fclose(file) || !whole || rename(part, path)) unlink(part);
    }
    free(bytes);
}

static cl_int build_kept(cl_program p, cl_uint n, const cl_device_id *ds, const char *options,
                         void (CL_CALLBACK *notify)(cl_program, void *), void *data) {
    const char *folder = getenv("EMULATED_GPU_KERNELS");
    uint64_t hash = folder && !notify ? kept_of(p).hash : 0;
    if (!hash) return next->clBuildProgram(p, n, ds, options, notify, data);
    if (options) hash = hash_of(hash, options, strlen(options));
    char path[4096];
    snprintf(path, sizeof path, "%s/%016llx", folder, (unsigned long long) hash);
    cl_device_id d;
    cl_context c;
    next->clGetProgramInfo(p, CL_PROGRAM_DEVICES, sizeof d, &d, NULL);
    next->clGetProgramInfo(p, CL_PROGRAM_CONTEXT, sizeof c, &c, NULL);
    if (read_back(p, c, d, path, options)) return CL_SUCCESS;
    cl_int error = next->clBuildProgram(p, n, ds, options, NULL, NULL);
    if (!error) write_out(p, path);
    return error;
}

static cl_int CL_API_CALL build(cl_program p, cl_uint n, const cl_device_id *ds, const char *options,
                                void (CL_CALLBACK *notify)(cl_program, void *), void *data) {
    cl_int error = build_kept(p, n, ds, options, notify, data);
    if (error && logging()) {
        static char log[1 << 16];
        cl_device_id d;
        next->clGetProgramInfo(p, CL_PROGRAM_DEVICES, sizeof d, &d, NULL);
        next->clGetProgramBuildInfo(p, d, CL_PROGRAM_BUILD_LOG, sizeof log, log, NULL);
        fprintf(stderr, "emulated GPU: clBuildProgram '%s' -> %d\n%.8000s\n", options ? options : "", error, log);
    }
    return error;
}

/* ---- Kernels: work-groups in one line --------------------------------------------------------------------------- */

/* On Intel's GPUs sub-groups are made of work items that follow each other by their linear id; the CPU runtime makes
   them along the first dimension alone. So work-groups are run as one line, and the kernels are told their shape by
   the global offset, which the plugin has no use for. Fast approximations of functions become the exact ones. */
static const char prelude[] =
    "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n"
    "inline size_t line_ls(uint d) { return d < 3 ? get_global_offset(d) : 1; }\n"
    "inline size_t line_lid(uint d) {\n"
    "  const size_t i = get_local_id(0), x = get_global_offset(0), y = get_global_offset(1);\n"
    "  return d == 0 ? i % x : d == 1 ? i / x % y : d == 2 ? i / (x * y) : 0; }\n"
    "inline size_t line_gid(uint d) { return get_group_id(d) * line_ls(d) + line_lid(d); }\n"
    "inline size_t line_gs(uint d) { return get_num_groups(d) * line_ls(d); }\n"
    "inline size_t line_llid(void) { return get_local_id(0); }\n"
    "inline size_t line_zero(uint d) { return 0; }\n"
    "#define get_local_size line_ls\n"
    "#define get_enqueued_local_size line_ls\n"
    "#define get_local_id line_lid\n"
    "#define get_global_id line_gid\n"
    "#define get_global_size line_gs\n"
    "#define get_local_linear_id line_llid\n"
    "#define get_global_offset line_zero\n"
    "#define reqd_work_group_size(...)\n"
    "#define native_exp exp\n#define native_exp2 exp2\n#define native_log log\n#define native_log2 log2\n"
    "#define native_sqrt sqrt\n#define native_rsqrt rsqrt\n#define native_sin sin\n#define native_cos cos\n"
    "#define native_tan tan\n#define native_exp10 exp10\n#define native_powr powr\n"
    "#line 1\n";

static cl_program CL_API_CALL create_program(cl_context c, cl_uint n, const char **strings, const size_t *lengths,
                                             cl_int *e) {
    const char **texts = malloc((n + 1) * sizeof *texts);
    size_t *sizes = malloc((n + 1) * sizeof *sizes);
    uint64_t hash = 0xcbf29ce484222325ull;
    for (cl_uint i = 0; i <= n; i++) {
        texts[i] = i ? strings[i - 1] : prelude;
        sizes[i] = i && lengths && lengths[i - 1] ? lengths[i - 1] : strlen(texts[i]);
        hash = hash_of(hash, texts[i], sizes[i]);
    }
    cl_program p = next->clCreateProgramWithSource(c, n + 1, texts, sizes, e);
    if (p) keep(p, hash);
    free(texts);
    free(sizes);
    return p;
}

static void log_run(cl_kernel k, cl_uint n, const size_t *g, const size_t *l, cl_int error) {
    char name[512] = "?";
    next->clGetKernelInfo(k, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL);
    fprintf(stderr, "emulated GPU: run %s", name);
    for (cl_uint i = 0; i < n; i++) fprintf(stderr, " %zu/%zu", g[i], l ? l[i] : 1);
    fprintf(stderr, " -> %d\n", error);
}

static cl_int CL_API_CALL enqueue(cl_command_queue q, cl_kernel k, cl_uint n, const size_t *offset, const size_t *g,
                                  const size_t *l, cl_uint nw, const cl_event *w, cl_event *event) {
    size_t shape[3] = {1, 1, 1}, global[3] = {1, 1, 1}, local[3] = {1, 1, 1};
    for (cl_uint i = 0; offset && i < n; i++)
        if (offset[i]) {
            fprintf(stderr, "emulated GPU: a kernel with a global offset, which is taken for its shape here\n");
            abort();
        }
    for (cl_uint i = 0; i < n; i++) {
        shape[i] = l ? l[i] : 1;
        global[i] = g[i] / shape[i];
        local[0] *= shape[i];
    }
    global[0] *= local[0];
    COUNT(kernels, 1);
    __atomic_store_n(&asked, 1, __ATOMIC_RELAXED);
    cl_int error = next->clEnqueueNDRangeKernel(q, k, 3, shape, global, local, nw, w, event);
    if (logging()) log_run(k, n, g, l, error);
    return error;
}

/* One command after the other. Out of order the CPU runtime showed races; whose they are is not known. */
static cl_command_queue CL_API_CALL create_queue(cl_context c, cl_device_id d, const cl_queue_properties *p,
                                                 cl_int *e) {
    cl_queue_properties ordered[64];
    int n = 0;
    for (; p && p[n] && n < 60; n += 2) {
        ordered[n] = p[n];
        ordered[n + 1] = p[n + 1];
        if (p[n] == CL_QUEUE_PROPERTIES)
            ordered[n + 1] &= ~(cl_queue_properties) CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE;
    }
    ordered[n] = 0;
    return next->clCreateCommandQueueWithProperties(c, d, p ? ordered : NULL, e);
}

/* ---- The layer -------------------------------------------------------------------------------------------------- */

cl_int clGetLayerInfo(cl_layer_info what, size_t size, void *value, size_t *ret) {
    if (what == CL_LAYER_API_VERSION) GIVE(cl_layer_api_version, CL_LAYER_API_VERSION_100);
    if (what == CL_LAYER_NAME) return give("emulated-gpu", 13, size, value, ret);
    return CL_INVALID_VALUE;
}

cl_int clInitLayer(cl_uint n, const struct _cl_icd_dispatch *target, cl_uint *n_ret,
                   const struct _cl_icd_dispatch **layer) {
    next = target;
    memcpy(&mine, target, n * sizeof(void *) < sizeof mine ? n * sizeof(void *) : sizeof mine);
    mine.clGetDeviceInfo = device_info;
    mine.clGetDeviceIDs = device_ids;
    mine.clBuildProgram = build;
    mine.clCreateKernel = create_kernel;
    mine.clCreateKernelsInProgram = create_kernels;
    mine.clGetProgramInfo = program_info;
    mine.clGetProgramBuildInfo = build_info;
    mine.clReleaseProgram = release_program;
    mine.clCreateProgramWithSource = create_program;
    mine.clCreateCommandQueueWithProperties = create_queue;
    mine.clGetExtensionFunctionAddressForPlatform = extension;
    mine.clEnqueueNDRangeKernel = enqueue;
    mine.clEnqueueWriteBuffer = write_buffer;
    mine.clEnqueueReadBuffer = read_buffer;
    mine.clEnqueueCopyBuffer = copy_buffer;
    mine.clEnqueueMapBuffer = map_buffer;
    mine.clFinish = finish;
    mine.clWaitForEvents = wait_for_events;
    *n_ret = sizeof mine / sizeof(void *);
    *layer = &mine;
    return CL_SUCCESS;
}

/* Version 200 of layers, which newer Khronos loaders ask for. */
cl_int clInitLayerWithProperties(cl_uint n, const struct _cl_icd_dispatch *target, cl_uint *n_ret,
                                 const struct _cl_icd_dispatch **layer, const void *properties) {
    (void) properties;
    return clInitLayer(n, target, n_ret, layer);
}
cl_int clDeinitLayer(void) { return CL_SUCCESS; }
