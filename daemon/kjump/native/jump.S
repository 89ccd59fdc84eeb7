/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * jump: back into the session's kernel.
 *
 * Used twice: by the helper, staged with a plain kexec (jump back), and by the boot side, as one
 * page of the restored memory to which the kernel's /dev/snapshot jumps (restore).  Both times the
 * code runs at its physical address with interrupts off; what is mapped besides differs, so it
 * brings its own tables.
 *
 * Nobody is left behind then, so whatever memory the kernel before had may be written to: the
 * session's pages of zeros are cleared here.  Nobody had to hold them until then, and a boot kernel
 * that has room for all pages but these need not know of them.
 *
 * The session's kernel expects what kexec itself would give it (arch/x86/kernel/
 * relocate_kernel_64.S): identity mapping of its control page, plain CR0 and CR4, a readable word
 * at 0(%rsp).  The loader fills the four quads at `parameters`, physical addresses.
 *
 * `kept` is the other way in, for a helper that wants to be entered again: its kernel, leaving with
 * its context preserved, calls the code with its own re-entry address at 0(%rsp).  That address
 * must be what the session's kernel finds at 0(%rsp) in its turn (it keeps it as the start of its
 * staged image).  So it goes from the kernel's stack, which the tables below do not map, to ours.
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
	movq	%rax, %cr4			/* ... the session's kernel brings back its own */
	movq	%cr0, %rax
	andl	$~(CR0_EM | CR0_TS | CR0_WP | CR0_AM), %eax
	movq	%rax, %cr0
	movq	tables(%rip), %rax
	movq	%rax, %cr3			/* maps these pages, the target and what is cleared */
	movq	stack(%rip), %rsp
	movq	zeros(%rip), %rsi
	jmp	clear

	.org	0x60
	.globl	kept
kept:
	endbr64
	movq	(%rsp), %rax			/* the helper's re-entry address ... */
	movq	stack(%rip), %rcx
	movq	%rax, (%rcx)			/* ... is where the session will look */
	jmp	start

	.org	0x80
	.globl	parameters
parameters:
tables:	.quad	0				/* top-level page table */
stack:	.quad	0				/* 0(stack) must be readable */
target:	.quad	0				/* the jump-back address */
zeros:	.quad	0				/* what to clear; 0: nothing */

/*
 * Extents as an image's index has them (kjump-image(5)): page frame number, number of pages (32
 * bits), kind.  One without pages ends the list.  64 bytes at a time, which is quick on any
 * processor; `rep stosb` is not, without ERMS.
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
