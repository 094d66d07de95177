option(WEIR_FUZZ "Build the libFuzzer targets (needs clang)" OFF)
set(WEIR_SANITIZE "" CACHE STRING "'address,undefined' or 'thread'")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE ccache)
if(CCACHE)
  # Paths below the checkout count relative to it, so that all checkouts share what is compiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# No fast-math anywhere: reproducible results rest on the order of additions that is written down.  -ffp-contract=off
# keeps the compiler from fusing a multiply and an add in one build and not in another; kernels that want FMA say so.
add_compile_options(-ffp-contract=off)

# gcc 12 sees overlapping copies in `"literal" + std::string(...)` where there are none (its PR 105651): -Wno-restrict.
add_library(weir_warnings INTERFACE)
target_compile_options(weir_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers
  -Wno-restrict)
if(NOT WEIR_SANITIZE)   # sanitizers make gcc see ghosts (-Wmaybe-uninitialized)
  target_compile_options(weir_warnings INTERFACE -Werror)
endif()

if(WEIR_SANITIZE)
  add_compile_options(-fsanitize=${WEIR_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${WEIR_SANITIZE})
endif()
if(WEIR_FUZZ)   # coverage of the libraries under test guides the fuzzer; whatever a sanitizer sees ends the run
  add_compile_options(-fsanitize=fuzzer-no-link -fno-sanitize-recover=all)
endif()

# gRPC, protobuf and abseil come uninstrumented from the distribution: what they order inside is invisible to
# ThreadSanitizer.  Files that include gRPC or protobuf are glue: compiled without ThreadSanitizer, kept thin, and handing
# over to the rest through std::mutex.
set(WEIR_GLUE_FLAGS "")
if(WEIR_SANITIZE STREQUAL "thread")
  set(WEIR_GLUE_FLAGS -fno-sanitize=thread)
endif()
function(weir_glue)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${WEIR_GLUE_FLAGS}")
endfunction()
