/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * jump: back into the session's kernel.
 *
 * This code has two users: the helper, which stages it with a plain kexec (jump back), and the boot
 * side, which puts it in one page of the restored memory; the kernel's /dev/snapshot jumps there
 * (restore).  In both cases the code runs at its physical address with interrupts off.  The rest of
 * the mappings differs, so the code brings its own page tables.
 *
 * The kernel before does not run any more, so its memory may be overwritten: the session's pages of
 * zeros are cleared here.  Nothing has to hold these pages until then, so a boot kernel needs room
 * only for all other pages.
 *
 * The session's kernel expects the state that kexec itself would leave (arch/x86/kernel/
 * relocate_kernel_64.S): identity mapping of its control page, plain CR0 and CR4, a readable word
 * at 0(%rsp).  The loader fills the four quads at `parameters`; all addresses are physical.
 *
 * `kept` is the other entry, for a helper that will be entered again: its kernel leaves with its
 * context preserved, and calls this code with its own re-entry address at 0(%rsp).  The session's
 * kernel must then find that address at 0(%rsp), because it keeps it as the start of its staged
 * image.  So the code copies it from the kernel's stack, which the tables below do not map, to
 * the stack here.
 */
#define CR4_PAE		(1 << 5)
#define CR4_MCE		(1 << 6)
#define CR4_LA57	(1 << 12)
#define CR0_EM		(1 << 2)
#define CR0_TS		(1 << 3)
#define CR0_WP		(1 << 16)
#define CR0_AM		(1 << 18)

	.code64
	.text
	.globl	start
start:
	endbr64					/* the boot kernel may track indirect branches */
	cli
	cld
	movq	%cr4, %rax			/* no CET, LASS, SMEP, PCID, global pages: ... */
	andl	$(CR4_PAE | CR4_MCE | CR4_LA57), %eax
	movq	%rax, %cr4			/* ... the session's kernel restores its own */
	movq	%cr0, %rax
	andl	$~(CR0_EM | CR0_TS | CR0_WP | CR0_AM), %eax
	movq	%rax, %cr0
	movq	tables(%rip), %rax
	movq	%rax, %cr3			/* maps these pages, the target and the pages to clear */
	movq	stack(%rip), %rsp
	movq	zeros(%rip), %rsi
	jmp	clear

	.org	0x60
	.globl	kept
kept:
	endbr64
	movq	(%rsp), %rax			/* the helper's re-entry address ... */
	movq	stack(%rip), %rcx
	movq	%rax, (%rcx)			/* ... goes where the session will look for it */
	jmp	start

	.org	0x80
	.globl	parameters
parameters:
tables:	.quad	0				/* top-level page table */
stack:	.quad	0				/* 0(stack) must be readable */
target:	.quad	0				/* the jump-back address */
zeros:	.quad	0				/* what to clear; 0: nothing */

/*
 * The list has extents in the form of an image's index (kjump-image(5)): page frame number, number
 * of pages (32 bits), kind.  An empty extent ends it.  This clears 64 bytes at a time, which is
 * fast on any processor; `rep stosb` is slow without ERMS.
 */
clear:
	testq	%rsi, %rsi
	jz	cleared
	xorl	%eax, %eax
next:
	movl	8(%rsi), %ecx
	testl	%ecx, %ecx
	jz	cleared
	movq	(%rsi), %rdi
	shlq	$12, %rdi
	shlq	$6, %rcx
blank:
	movq	%rax, (%rdi)
	movq	%rax, 8(%rdi)
	movq	%rax, 16(%rdi)
	movq	%rax, 24(%rdi)
	movq	%rax, 32(%rdi)
	movq	%rax, 40(%rdi)
	movq	%rax, 48(%rdi)
	movq	%rax, 56(%rdi)
	addq	$64, %rdi
	decq	%rcx
	jnz	blank
	addq	$16, %rsi
	jmp	next
cleared:
	jmpq	*target(%rip)
	.org	0x100
	.section .note.GNU-stack, "", @progbits
