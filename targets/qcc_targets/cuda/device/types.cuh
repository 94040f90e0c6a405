// The integer types of the generated kernels; no header of the toolkit is needed.
#ifndef QCC_TYPES_CUH
#define QCC_TYPES_CUH

#ifndef QCC_HOST_TYPES  // a host compiler has them already
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#endif
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

#endif
