// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Chunks: compressing pages into one, and unpacking it again.
 *
 * kjump.image.codec calls this through ctypes, so all of it runs in parallel with other threads.
 * The compressors are libzstd and liblz4; the checksums come from xxHash and zlib.
 * Layout of a chunk: kjump/image/layout.py.
 */
#include <stddef.h>
#include <string.h>

#include <lz4.h>
#define XXH_INLINE_ALL			/* so the initrds need no further library */
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

#include "kjump.h"

#define HEAD 32u			/* bytes of a chunk's header */
#define CHECKED 28u			/* how many of these come before its own checksum */
#define SAMPLE (32u << 10)
#define SAMPLES 4u

enum codec { RAW = 0, ZSTD = 1, LZ4 = 2 };

struct head {
	char magic[4];
	uint32_t number, extents, pages, codec, length, payload_check, checked;
};

_Static_assert(sizeof(struct head) == HEAD, "header of a chunk");

void *kj_context(void)
{
	return ZSTD_createCCtx();
}

void kj_context_free(void *context)
{
	ZSTD_freeCCtx(context);
}

/* The low half of XXH64 with seed 0, as in a zstd frame: several times as fast as a CRC. */
uint32_t kj_checksum(const uint8_t *data, uint64_t length)
{
	return (uint32_t)XXH64(data, length, 0);
}

/*
 * Is this worth compressing?  A fast compressor tries a few samples, because zstd would take far
 * longer to find out.  `scratch` has room for a sample.
 */
static int compressible(const uint8_t *data, uint64_t size, uint8_t *scratch, uint64_t room)
{
	uint64_t step = size / SAMPLES / PAGE * PAGE, taken = 0, packed = 0;

	if (size < SAMPLES * SAMPLE)
		return 1;
	for (unsigned i = 0; i < SAMPLES; i++) {
		int n = LZ4_compress_fast((const char *)data + i * step, (char *)scratch, SAMPLE,
					  room < INT32_MAX ? (int)room : INT32_MAX, 4);

		taken += SAMPLE;
		packed += n > 0 ? (uint64_t)n : SAMPLE;
	}
	return packed < taken - taken / 32;
}

/*
 * Make a chunk, except its number and its header's checksum (see kj_chunk_seal).  It has the header
 * and the extents; from the next page on the payload, which is the pages compressed with `codec`,
 * or unchanged if that would not make them smaller; then zeros up to the next page.
 *
 * Unchanged pages also stay in place, and the rest is put before them.  Compressed pages go to
 * `out`, which has room for `count` pages.  Before `pages` and before `out` there is memory for
 * header and extents.  Returns the chunk's size in bytes, and its start in *chunk; both are whole
 * pages.
 */
uint64_t kj_chunk_pack(void *context, uint8_t *pages, uint64_t count, const struct extent *list,
		       uint64_t extents, uint32_t codec, int level, uint8_t *out, uint8_t **chunk)
{
	uint64_t at = HEAD + extents * sizeof *list, size = count * PAGE, length = 0;
	uint64_t lead = (at + PAGE - 1) / PAGE * PAGE, stored;
	struct head head = {{'K', 'J', 'C', 'H'}, 0, (uint32_t)extents, (uint32_t)count, codec,
			    0, 0, 0};
	uint8_t *payload = out;

	if (codec == ZSTD && compressible(pages, size, out, size)) {
		length = ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
		if (!ZSTD_isError(length))
			length = ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
		if (!ZSTD_isError(length))
			length = ZSTD_compress2(context, out, size, pages, size);
		if (ZSTD_isError(length))	/* no room: the pages did not become smaller */
			length = 0;
	} else if (codec == LZ4) {
		int n = LZ4_compress_fast((const char *)pages, (char *)out, (int)size,
					  (int)(size - size / 32), 1);

		length = n > 0 ? (uint64_t)n : 0;
	}
	if (!length || length >= size) {
		head.codec = RAW;
		length = size;
		payload = pages;
	}
	stored = (length + PAGE - 1) / PAGE * PAGE;
	memset(payload + length, 0, stored - length);
	*chunk = payload - lead;
	memcpy(*chunk + HEAD, list, extents * sizeof *list);
	memset(*chunk + at, 0, lead - at);
	head.length = (uint32_t)length;
	head.payload_check = kj_checksum(payload, length);
	memcpy(*chunk, &head, HEAD);
	return lead + stored;
}

/* Set the number and the header's checksum of a chunk that kj_chunk_pack made. */
void kj_chunk_seal(uint8_t *chunk, uint32_t number)
{
	struct head head;
	unsigned long checked;

	memcpy(&head, chunk, HEAD);
	head.number = number;
	checked = crc32_z(0, (const uint8_t *)&head, CHECKED);
	head.checked = (uint32_t)crc32_z(checked, chunk + HEAD,
					 head.extents * sizeof(struct extent));
	memcpy(chunk, &head, HEAD);
}

/*
 * Unpack a payload of `length` bytes to `size` bytes.  Returns 1, or 0 if it does not unpack to
 * exactly that many.
 */
int kj_unpack(uint32_t codec, const uint8_t *payload, uint64_t length, uint8_t *out, uint64_t size)
{
	switch (codec) {
	case RAW:
		if (length != size)
			return 0;
		memcpy(out, payload, size);
		return 1;
	case ZSTD:
		return ZSTD_getFrameContentSize(payload, length) == size &&
		       ZSTD_decompress(out, size, payload, length) == size;
	case LZ4:
		return length <= INT32_MAX && size <= INT32_MAX &&
		       LZ4_decompress_safe((const char *)payload, (char *)out, (int)length,
					   (int)size) == (int)size;
	}
	return 0;
}

/* Make a zstd frame, with checksum.  Returns its length, or 0 if `room` is too small. */
uint64_t kj_pack(void *context, int level, const uint8_t *data, uint64_t size, uint8_t *out,
		 uint64_t room)
{
	uint64_t length;

	ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
	ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
	length = ZSTD_compress2(context, out, room, data, size);
	return ZSTD_isError(length) ? 0 : length;
}

/* The room that kj_pack needs for any `size` bytes. */
uint64_t kj_pack_bound(uint64_t size)
{
	return ZSTD_compressBound(size);
}
