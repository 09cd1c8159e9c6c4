/* SPDX-License-Identifier: Apache-2.0
 *
 * scSE with the larger of the two products, y = max(u g, u s), in as few passes over memory as there can be.
 *
 * u, y and their gradients are (batch, channels, size) without gaps, g is the channel map (batch, channels), s the
 * spatial map (batch, size). Sums are taken tile by tile and then over the tiles, in an order that does not depend on
 * the number of threads. Threads live as long as a call, so that a forked process has nothing to inherit.
 *
 * Every function returns 0, or 1 where there is no memory for the sums of the tiles.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

enum { VERSION = 1, TILE = 4096, ROWS = 4, MAX_THREADS = 64, VALUES_PER_THREAD = 1 << 16 };

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

static const float NOTHING[TILE];

/* Rows: `length` <= TILE neighbouring positions of one channel. ------------------------------------------------------ */

/* Sum up ROWS channels at once, which hides the latency of additions, and add their share to the logits. */
VECTORISED static void squeeze_rows(const float *const *u, const float *weight, float *restrict logits, int64_t length,
                                    float *sums)
{
    const float *restrict u0 = u[0], *restrict u1 = u[1], *restrict u2 = u[2], *restrict u3 = u[3];
    const float w0 = weight[0], w1 = weight[1], w2 = weight[2], w3 = weight[3];
    float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (int64_t i = 0; i < length; i++) {
        sum0 += u0[i];
        sum1 += u1[i];
        sum2 += u2[i];
        sum3 += u3[i];
        logits[i] += w0 * u0[i] + w1 * u1[i] + w2 * u2[i] + w3 * u3[i];
    }
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}

VECTORISED static void excite_row(const float *restrict u, float g, const float *restrict s, float *restrict y,
                                  int64_t length)
{
    for (int64_t i = 0; i < length; i++) {
        const float by_channel = u[i] * g, by_position = u[i] * s[i];
        y[i] = (by_channel >= by_position) | (by_channel != by_channel) ? by_channel : by_position; /* NaN stays */
    }
}

/* How much of the larger product the channel map has: all, nothing, or half where both are equal, as torch.maximum. */
static inline float share_of_channel(float u, float g, float s)
{
    const float by_channel = u * g, by_position = u * s;
    return (by_channel > by_position ? 0.5f : 0.0f) + (by_channel >= by_position ? 0.5f : 0.0f);
}

/* Add to the gradient of s; return this row's share of that of g. */
VECTORISED static float differentiate_maps_row(const float *restrict u, const float *restrict grad, float g,
                                               const float *restrict s, float *restrict grad_s, int64_t length)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; i++) {
        const float both = u[i] * grad[i], channel = share_of_channel(u[i], g, s[i]) * both;
        sum += channel;
        grad_s[i] += both - channel;
    }
    return sum;
}

/* The gradient of u by the product, by the mean (a constant) and by the logits; return that of the logits' weight. */
VECTORISED static float differentiate_input_row(const float *restrict u, const float *restrict grad, float g,
                                                const float *restrict s, float constant, float weight,
                                                const float *restrict grad_logits, float *restrict grad_u,
                                                int64_t length)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; i++) {
        const float share = share_of_channel(u[i], g, s[i]);
        grad_u[i] = grad[i] * (share * g + (1 - share) * s[i]) + (constant + weight * grad_logits[i]);
        sum += grad_logits[i] * u[i];
    }
    return sum;
}

VECTORISED static float sum_row(const float *restrict values, int64_t length)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; i++)
        sum += values[i];
    return sum;
}

/* Tiles: the same positions of all channels of one item of the batch. ------------------------------------------------ */

struct pass {
    void (*do_tile)(const struct pass *, int64_t item, int64_t start, int64_t length, float *sums);
    int64_t channels, size, tiles_per_item, tiles, next;
    const float *u, *grad, *g, *s, *weight, *grad_means, *grad_logits;
    float *result, *map, *sums; /* `map` is the logits or the gradient of s */
};

static void squeeze_tile(const struct pass *p, int64_t item, int64_t start, int64_t length, float *sums)
{
    float *logits = p->map + item * p->size + start;
    for (int64_t i = 0; i < length; i++)
        logits[i] = 0;
    for (int64_t channel = 0; channel < p->channels; channel += ROWS) {
        const float *rows[ROWS];
        float weight[ROWS], row_sums[ROWS];
        for (int64_t k = 0; k < ROWS; k++) {
            const int inside = channel + k < p->channels;
            rows[k] = inside ? p->u + (item * p->channels + channel + k) * p->size + start : NOTHING;
            weight[k] = inside ? p->weight[channel + k] : 0;
        }
        squeeze_rows(rows, weight, logits, length, row_sums);
        for (int64_t k = 0; k < ROWS && channel + k < p->channels; k++)
            sums[channel + k] = row_sums[k];
    }
}

static void excite_tile(const struct pass *p, int64_t item, int64_t start, int64_t length, float *sums)
{
    (void)sums;
    for (int64_t channel = 0; channel < p->channels; channel++) {
        const int64_t row = item * p->channels + channel, at = row * p->size + start;
        excite_row(p->u + at, p->g[row], p->s + item * p->size + start, p->result + at, length);
    }
}

static void differentiate_maps_tile(const struct pass *p, int64_t item, int64_t start, int64_t length, float *sums)
{
    const int64_t position = item * p->size + start;
    for (int64_t i = 0; i < length; i++)
        p->map[position + i] = 0;
    for (int64_t channel = 0; channel < p->channels; channel++) {
        const int64_t row = item * p->channels + channel, at = row * p->size + start;
        sums[channel] = differentiate_maps_row(p->u + at, p->grad + at, p->g[row], p->s + position, p->map + position,
                                               length);
    }
}

static void differentiate_input_tile(const struct pass *p, int64_t item, int64_t start, int64_t length, float *sums)
{
    const int64_t position = item * p->size + start;
    for (int64_t channel = 0; channel < p->channels; channel++) {
        const int64_t row = item * p->channels + channel, at = row * p->size + start;
        sums[channel] = differentiate_input_row(p->u + at, p->grad + at, p->g[row], p->s + position,
                                                p->grad_means[row] / (float)p->size, p->weight[channel],
                                                p->grad_logits + position, p->result + at, length);
    }
    sums[p->channels] = sum_row(p->grad_logits + position, length);
}

/* Passes: all tiles, by several threads. ----------------------------------------------------------------------------- */

static void *do_tiles(void *pass)
{
    struct pass *p = pass;
    for (;;) {
        const int64_t tile = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED);
        if (tile >= p->tiles)
            return NULL;
        const int64_t item = tile / p->tiles_per_item, start = tile % p->tiles_per_item * TILE;
        const int64_t length = p->size - start < TILE ? p->size - start : TILE;
        p->do_tile(p, item, start, length, p->sums ? p->sums + tile * (p->channels + 1) : NULL);
    }
}

static int do_pass(struct pass *p, int64_t batch, int64_t threads, int has_sums)
{
    pthread_t others[MAX_THREADS];
    int64_t started = 0;
    p->tiles_per_item = (p->size + TILE - 1) / TILE;
    p->tiles = batch * p->tiles_per_item;
    if (has_sums && !(p->sums = malloc(p->tiles * (p->channels + 1) * sizeof(float))))
        return 1;
    const int64_t useful = 1 + batch * p->channels * p->size / VALUES_PER_THREAD;
    threads = threads < useful ? threads : useful;
    while (started < threads - 1 && started < MAX_THREADS && !pthread_create(&others[started], NULL, do_tiles, p))
        started++; /* those that the system refuses are done without */
    do_tiles(p);
    while (started > 0)
        pthread_join(others[--started], NULL);
    return 0;
}

/* The sum of one column of the tiles' sums, over the tiles of the items from `first` to `last`. */
static float sum_tiles(const struct pass *p, int64_t first, int64_t last, int64_t column)
{
    double sum = 0;
    for (int64_t tile = first * p->tiles_per_item; tile < last * p->tiles_per_item; tile++)
        sum += p->sums[tile * (p->channels + 1) + column];
    return (float)sum;
}

static void sum_items(const struct pass *p, int64_t batch, float divisor, float *result)
{
    for (int64_t item = 0; item < batch; item++)
        for (int64_t channel = 0; channel < p->channels; channel++)
            result[item * p->channels + channel] = sum_tiles(p, item, item + 1, channel) / divisor;
}

/* What Python calls. ------------------------------------------------------------------------------------------------- */

int scse_version(void)
{
    return VERSION;
}

/* Channel means and spatial logits (without bias). */
int scse_squeeze(const float *u, const float *weight, float *means, float *logits, int64_t batch, int64_t channels,
                 int64_t size, int64_t threads)
{
    struct pass p = {.do_tile = squeeze_tile, .channels = channels, .size = size, .u = u, .weight = weight,
                     .map = logits};
    if (do_pass(&p, batch, threads, 1))
        return 1;
    sum_items(&p, batch, (float)size, means);
    free(p.sums);
    return 0;
}

int scse_excite(const float *u, const float *g, const float *s, float *y, int64_t batch, int64_t channels,
                int64_t size, int64_t threads)
{
    struct pass p = {.do_tile = excite_tile, .channels = channels, .size = size, .u = u, .g = g, .s = s, .result = y};
    return do_pass(&p, batch, threads, 0);
}

/* The gradients of both maps, of the gradient of y. */
int scse_differentiate_maps(const float *u, const float *grad, const float *g, const float *s, float *grad_g,
                            float *grad_s, int64_t batch, int64_t channels, int64_t size, int64_t threads)
{
    struct pass p = {.do_tile = differentiate_maps_tile, .channels = channels, .size = size, .u = u, .grad = grad,
                     .g = g, .s = s, .map = grad_s};
    if (do_pass(&p, batch, threads, 1))
        return 1;
    sum_items(&p, batch, 1, grad_g);
    free(p.sums);
    return 0;
}

/* The gradients of u, and of the weight and the bias of the logits; of those of y, the means and the logits. */
int scse_differentiate_input(const float *u, const float *grad, const float *g, const float *s, const float *weight,
                             const float *grad_means, const float *grad_logits, float *grad_u, float *grad_weight,
                             float *grad_bias, int64_t batch, int64_t channels, int64_t size, int64_t threads)
{
    struct pass p = {.do_tile = differentiate_input_tile, .channels = channels, .size = size, .u = u, .grad = grad,
                     .g = g, .s = s, .weight = weight, .grad_means = grad_means, .grad_logits = grad_logits,
                     .result = grad_u};
    if (do_pass(&p, batch, threads, 1))
        return 1;
    for (int64_t channel = 0; channel < channels; channel++)
        grad_weight[channel] = sum_tiles(&p, 0, batch, channel);
    *grad_bias = sum_tiles(&p, 0, batch, channels);
    free(p.sums);
    return 0;
}
