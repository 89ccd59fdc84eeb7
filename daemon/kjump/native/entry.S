/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * entry: the first instructions of the helper kernel.
 *
 * The session's kexec jumps here (64-bit, identity mapped, interrupts off) with its own jump-back
 * address at 0(%rsp).  This code stores that address where the helper will look for it, then enters
 * the kernel by the 64-bit boot protocol (Documentation/arch/x86/boot.rst): flat segments 0x10 and
 * 0x18, rsi = boot_params.
 *
 * It is position independent and lies at the start of the window.  The loader fills the four quads
 * at `parameters`; all addresses are physical.
 */
	.code64
	.text
	.globl	start
start:
	cli
	cld
	movq	(%rsp), %rax			/* the session's jump-back address ... */
	movq	note_slot(%rip), %rbx
	movq	%rax, (%rbx)			/* ... into the KJUMP note ... */
	movq	cell_slot(%rip), %rbx
	movq	%rax, (%rbx)			/* ... and into the return cell */

	leaq	gdt(%rip), %rax			/* the kernel needs its two flat segments */
	movq	%rax, gdt_base(%rip)
	lgdt	gdt_limit(%rip)
	movl	$0x18, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs

	leaq	stack_top(%rip), %rsp
	pushq	$0x10				/* lretq takes the new %cs ... */
	pushq	kernel_entry(%rip)		/* ... and %rip from the stack */
	movq	boot_params(%rip), %rsi
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	lretq

	.org	0x100
	.globl	parameters
parameters:
note_slot:	.quad	0			/* where the note keeps the jump-back address */
cell_slot:	.quad	0			/* where the return cell keeps it */
boot_params:	.quad	0
kernel_entry:	.quad	0			/* load address + 0x200 */

	.balign	16
gdt:	.quad	0
	.quad	0
	.quad	0x00af9a000000ffff		/* 0x10: 64-bit code */
	.quad	0x00cf92000000ffff		/* 0x18: data */
gdt_end:
	.balign	8
	.skip	6				/* so that the base is 8-byte aligned */
gdt_limit:
	.word	gdt_end - gdt - 1
gdt_base:
	.quad	0

	.org	0x200
	.skip	0x100
stack_top:
	.org	0x300
	.section .note.GNU-stack, "", @progbits
