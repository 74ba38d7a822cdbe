# Entry points of all vectors. Each runs on a stack of its own (IST), because the prebuilt `core` uses
# the red zone. Exceptions never return, so they may spoil whatever they like; the interrupt stubs
# touch one register and no XMM.

    .section .text.vectors, "ax", @progbits
    .code64

    .macro vector number, has_error
vector_\number:
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\number
    jmp exception_entry
    .endm

    vector 0, 0
    vector 1, 0
    vector 2, 0
    vector 3, 0
    vector 4, 0
    vector 5, 0
    vector 6, 0
    vector 7, 0
    vector 8, 1
    vector 9, 0
    vector 10, 1
    vector 11, 1
    vector 12, 1
    vector 13, 1
    vector 14, 1
    vector 15, 0
    vector 16, 0
    vector 17, 1
    vector 18, 0
    vector 19, 0
    vector 20, 0
    vector 21, 1
    vector 22, 0
    vector 23, 0
    vector 24, 0
    vector 25, 0
    vector 26, 0
    vector 27, 0
    vector 28, 0
    vector 29, 1
    vector 30, 1
    vector 31, 0

exception_entry:
    cld
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    andq $-16, %rsp
    call {report}
    ud2

    # Timer and devices: all they have to do is to end a HLT.
    .global interrupt_entry
interrupt_entry:
    pushq %rax
    movl ${apic_eoi}, %eax
    movl $0, (%rax)
    popq %rax
    iretq

    .global spurious_entry
spurious_entry:
    iretq

    .section .rodata.vectors, "a", @progbits
    .balign 8
    .global exception_vectors
exception_vectors:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad vector_\n
    .endr
